"""The whole way over a real S3 and a real GCS server, configured as operators do it: by the environment."""

from __future__ import annotations

import hashlib
import json

import pytest

from tests.acceptance.conftest import ROWS
from tests.acceptance.program import ask, remember
from tests.integration.helpers import contents

BOTH = {tier: 2 * count for tier, count in ROWS.items()}


@pytest.fixture(params=["weed", "moto", "gcs"])
def cloud(request):
    """(environment, the bucket's server)"""
    server = request.getfixturevalue(request.param)
    prefix = server.url().rpartition("/")[2]
    backend = "gcs" if request.param == "gcs" else "s3"
    settings = {"COLD_STORE_BACKEND": backend, "COLD_STORE_BUCKET": server.bucket, "COLD_STORE_PREFIX": f"/{prefix}/memory/"}
    return {**server.env, **settings}, server


def test_there_and_back(cold, memory, target, cloud):
    env, server = cloud
    env["DATABASE_URL"] = memory
    others = server.open_uploads()  # the server is everybody's, and other tests leave uploads on purpose
    info = cold("snapshot", "--json", env=env).json
    assert info["rows"] == BOTH
    assert info["path"] == f"snapshots/{info['snapshotAt'][:10]}/{info['id']}.json"
    document = cold("cat", info["id"], env=env).stdout
    assert (info["sha256"], info["bytes"]) == (hashlib.sha256(document).hexdigest(), len(document))
    assert len(json.loads(document)["dailyMemories"]) == 6
    users = cold("snapshot", "--each-user", "--compression", "zstd", "--json", env=env).json
    assert [u["uid"] for u in users] == ["uid_alice", "uid_bob"]
    listed = cold("list", "--json", env=env).json
    assert {i["id"] for i in listed} == {info["id"], *(u["id"] for u in users)}
    assert listed[-1] == info
    verified = cold("verify", "--all", "--deep", "--json", env=env).json
    assert (verified["ok"], verified["checked"]) == (True, 3)
    result = cold("restore", "--to", target, "--json", env=env)
    assert (result.err, result.json["verified"]) == ("", "content")
    restored = contents(target)
    assert restored == {name: rows for name, rows in contents(memory).items() if name in restored}
    assert server.open_uploads() == others


def test_one_user_and_the_url_as_a_flag(cold, memory, database, make_database, cloud):
    env, server = cloud
    there = make_database()
    plain = {k: v for k, v in env.items() if not k.startswith("COLD_STORE")}
    url = server.url()
    remember(memory, "übel/../../all")
    info = cold("snapshot", "--uid", "übel/../../all", "--store", url, "--json", env={**plain, "DATABASE_URL": memory}).json
    assert info["rows"] == ROWS
    cold("restore", info["id"], "--to", there, "--store", url, env=plain)
    assert ask(there, "SELECT uid, count(*) FROM daily_memories GROUP BY 1") == [("übel/../../all", 3)]
    assert url in cold("show", info["id"], "--store", url, env=plain).out


def test_a_large_document_goes_up_in_parts(cold, memory, make_database, weed):
    """12 MB in frames, more than one part."""
    there = make_database()
    others = weed.open_uploads()
    remember(memory, "uid_big", days=12_000, padding=1000)
    env = {**weed.env, "DATABASE_URL": memory, "COLD_STORE_URL": weed.url()}
    info = cold("snapshot", "--json", env=env).json
    assert info["bytes"] > 12_000_000
    cold("restore", "--to", there, env=env)
    assert ask(there, "SELECT count(*) FROM daily_memories") == [(12_006,)]
    assert weed.open_uploads() == others


def test_a_missing_document_and_a_stranger(cold, memory, target, weed):
    env = {**weed.env, "DATABASE_URL": memory, "COLD_STORE_URL": weed.url()}
    info = cold("snapshot", "--json", env=env).json
    prefix = env["COLD_STORE_URL"].rpartition("/")[2]
    weed.client().put_object(Bucket=weed.bucket, Key=f"{prefix}/snapshots/notes.txt", Body=b"x")
    assert cold("verify", "--all", "--json", env=env).json["ok"]
    weed.client().delete_object(Bucket=weed.bucket, Key=f"{prefix}/{info['path']}")
    told = cold.refused("restore", "--to", target, env=env, code=5, error="CorruptDocument")
    assert "missing" in told["message"]
    assert cold("verify", "--all", "--json", env=env, code=9).json["results"][0]["problems"]
