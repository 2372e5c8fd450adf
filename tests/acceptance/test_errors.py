"""What goes wrong ends in one clear sentence with a hint, the exit code of its kind, and nothing half-written on either side."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import resource
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from coldstore.app import ColdStore
from coldstore.config import build
from coldstore.document import model
from coldstore.postgres.source import Source
from tests.acceptance.conftest import as_role, take
from tests.acceptance.program import ask, execute, files, remember
from tests.integration.helpers import everything

CONFIG, DATABASE, STORE, DOCUMENT, NOT_FOUND, REFUSED, DAMAGED = 2, 3, 4, 5, 6, 7, 9


# --- the database ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://postgres@127.0.0.1:1/memory", "cannot connect to 127.0.0.1:1/memory: "),
        ("postgresql://postgres@no-such-host.invalid/memory", "cannot connect to no-such-host.invalid/memory: "),
        ("postgresql://postgres@/memory?host=/no/such/folder", "cannot connect to "),
    ],
    ids=["port", "host", "socket"],
)
def test_no_server_there(cold, stored, url, says):
    before = files(stored.folder)
    told = cold.refused("snapshot", "--uid", "uid_alice", env={"DATABASE_URL": url}, code=DATABASE, error="DatabaseUnreachable")
    assert told["message"].startswith(says)
    assert "server is running" in told["hint"]
    told = cold.refused("restore", "--to", url, code=DATABASE, error="DatabaseUnreachable")
    assert told["message"].startswith(says)
    assert files(stored.folder) == before


def test_wrong_password(cold, postgres):
    right = postgres.url(tcp=True)
    secret = psycopg.conninfo.conninfo_to_dict(right)["password"]
    told = cold.refused(
        "snapshot", env={"DATABASE_URL": right.replace(secret, "wrong-password")}, code=DATABASE, error="DatabaseUnreachable"
    )
    assert "password authentication failed" in told["message"]
    assert "user and password" in told["hint"]
    assert "wrong-password" not in json.dumps(told)
    assert files(cold.folder) == []


def test_no_such_database(cold, postgres):
    told = cold.refused("snapshot", env={"DATABASE_URL": postgres.url("nowhere")}, code=DATABASE, error="DatabaseUnreachable")
    assert 'database "nowhere" does not exist' in told["message"]
    assert "correct the name" in told["hint"]


@pytest.mark.parametrize("url", ["garbage", "postgresql://[::1", "mysql://root@localhost/memory", "postgresql://h/d?no_such=1"])
def test_a_url_that_is_none(cold, url):
    told = cold.refused("snapshot", env={"DATABASE_URL": url}, code=CONFIG, error="ConfigError")
    assert "postgresql://" in told["hint"]


def test_no_database_configured(cold):
    told = cold.refused("snapshot", code=CONFIG, error="ConfigError")
    assert "DATABASE_URL" in told["hint"]


def test_no_such_table(cold, empty_database):
    told = cold.refused("snapshot", env={"DATABASE_URL": empty_database}, code=DATABASE, error="TableMissing")
    assert "daily_memories" in told["message"]
    assert "init --reference-schema" in told["hint"]
    assert files(cold.folder) == []


def test_no_privilege_on_a_table(cold, memory, role):
    execute(memory, f"GRANT SELECT ON daily_memories, procedural_memory TO {role}")
    told = cold.refused("snapshot", env={"DATABASE_URL": as_role(memory, role)}, code=DATABASE, error="PermissionDenied")
    assert "graph_entities" in told["message"]
    assert files(cold.folder) == []


def test_row_level_security_in_the_way(cold, memory, role):
    execute(
        memory,
        f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}",
        "ALTER TABLE daily_memories ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY own ON daily_memories USING (uid = 'uid_alice')",
    )
    for arguments in (["--all"], ["--uid", "uid_alice"], ["--each-user"]):
        told = cold.refused("snapshot", *arguments, env={"DATABASE_URL": as_role(memory, role)}, code=DATABASE, error="RowSecurityActive")
        assert "daily_memories" in told["message"]
        assert "BYPASSRLS" in told["hint"]
    assert files(cold.folder) == []


def test_the_target_may_not_be_created_in(cold, stored, target, role):
    before = everything(target)
    cold.refused("restore", "--to", as_role(target, role), code=DATABASE, error="PermissionDenied")
    assert everything(target) == before


def test_the_target_may_not_be_written_to(cold, stored, database, make_database, role):
    there = make_database()
    execute(there, f"GRANT CREATE ON DATABASE {there.rpartition('/')[2].partition('?')[0]} TO {role}")
    execute(there, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    try:
        before = everything(there)
        cold.refused("restore", "--to", as_role(there, role), code=DATABASE, error="PermissionDenied")
        assert everything(there) == before
    finally:
        execute(there, f"DROP OWNED BY {role}")


# --- the target --------------------------------------------------------------------------------------------------------------------


def test_a_target_that_is_not_empty(cold, stored, database):
    before = everything(stored.url)
    told = cold.refused("restore", "--to", stored.url, code=REFUSED, error="TargetNotEmpty")
    assert "daily_memories" in told["message"]
    assert "--mode" in told["hint"]
    assert everything(stored.url) == before


def test_a_target_that_lacks_a_column(cold, stored, make_database):
    there = make_database()
    execute(there, "ALTER TABLE daily_memories DROP COLUMN summary")
    before = everything(there)
    told = cold.refused("restore", "--to", there, code=REFUSED, error="SchemaMismatch")
    assert "'summary'" in told["message"]
    assert everything(there) == before


# --- whose memory ------------------------------------------------------------------------------------------------------------------


def test_a_uid_nobody_has(cold, stored, target):
    before, there = files(stored.folder), everything(target)
    for arguments in (["--uid", "uid_nobody"], ["--uid", ""], ["--workspace", "nowhere"]):
        told = cold.refused("snapshot", *arguments, env={"DATABASE_URL": stored.url}, code=NOT_FOUND, error="NotFound")
        assert repr(arguments[1]) in told["message"]
        told = cold.refused("restore", *arguments, "--to", target, code=NOT_FOUND, error="NotFound")
        assert repr(arguments[1]) in told["message"]
    assert files(stored.folder) == before
    assert everything(target) == there


def test_no_such_snapshot(cold, stored, target):
    for name in ("memory-all-1", "../../etc/passwd", "memory-all-999999999999999", "memory-nobody-1740621600000"):
        told = cold.refused("restore", name, "--to", target, code=NOT_FOUND, error="NotFound")
        assert name in told["message"]
    cold.refused("show", "memory-all-1", code=NOT_FOUND, error="NotFound")
    cold.refused("verify", "memory-all-1", code=NOT_FOUND, error="NotFound")
    cold.refused("restore", "--label", "no-such", "--to", target, code=NOT_FOUND, error="NotFound")
    cold.refused("restore", "--file", "no-such.json", "--to", target, code=NOT_FOUND, error="NotFound")


# --- the store ---------------------------------------------------------------------------------------------------------------------


def test_a_file_in_the_place_of_the_folder(cold, memory):
    (cold.folder / "taken").write_text("")
    cold.refused("snapshot", "--store", "taken", env={"DATABASE_URL": memory}, code=STORE, error="StoreError")
    assert files(cold.folder) == ["taken"]


@contextmanager
def mounted(folder: Path, options: str):
    """A file system of its own at `folder`."""
    folder.mkdir(exist_ok=True)
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"this machine lets nobody mount: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(cold, memory):
    remember(memory, "uid_big", days=2000, padding=1000)
    store = cold.folder / "small"
    env = {"DATABASE_URL": memory}
    with mounted(store, "size=1m"):
        for arguments in (["--all"], ["--uid", "uid_big"]):
            told = cold.refused("snapshot", *arguments, "--store", store, env=env, code=STORE, error="StoreFull")
            assert "space" in told["message"]
        cold.refused("snapshot", "--each-user", "--store", store, env=env, code=STORE, error="StoreFull")
        assert not [f for f in files(store) if ".tmp-" in f]
        left = {i["uid"] for i in cold("list", "--store", store, "--json").json}
        assert left <= {"uid_alice", "uid_bob"}  # who was written before the disk was full is whole
        assert len([f for f in files(store) if f.startswith("snapshots/") and "uid_big" in f]) == 0


def test_a_file_size_limit(cold, memory):
    """As a full disk, for those who may not mount one."""
    remember(memory, "uid_big", days=500, padding=1000)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    cold.refused("snapshot", env={"DATABASE_URL": memory}, before=limit, code=STORE, error="StoreFull")
    assert files(cold.folder) == []
    assert cold("list", "--json").json == []


def test_a_folder_that_cannot_be_written(cold, memory):
    store = cold.folder / "fixed"
    with mounted(store, "ro"):
        cold.refused("snapshot", "--store", store, env={"DATABASE_URL": memory}, code=STORE, error="AccessDenied")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else(cold, memory):
    store = cold.folder / "fixed"
    store.mkdir(mode=0o500)
    cold.refused("snapshot", "--store", store, env={"DATABASE_URL": memory}, code=STORE, error="AccessDenied")


def test_no_such_bucket(cold, memory, moto):
    env = {"DATABASE_URL": memory, **moto.env}
    told = cold.refused("snapshot", "--store", "s3://no-such-bucket/x", env=env, code=STORE, error="BucketMissing")
    assert "no-such-bucket" in told["message"]
    cold.refused("list", "--store", "s3://no-such-bucket/x", env=env, code=STORE, error="BucketMissing")


def test_no_such_bucket_of_gcs(cold, memory, gcs):
    env = {"DATABASE_URL": memory, **gcs.env}
    told = cold.refused("snapshot", "--store", "gs://no-such-bucket/x", env=env, code=STORE, error="BucketMissing")
    assert "no-such-bucket" in told["message"]


def test_wrong_credentials(cold, memory, weed):
    env = {"DATABASE_URL": memory, **weed.env, "AWS_SECRET_ACCESS_KEY": "wrong-secret"}
    store = weed.url()
    told = cold.refused("snapshot", "--store", store, env=env, code=STORE, error="AccessDenied")
    assert "wrong-secret" not in json.dumps(told)
    cold.refused("list", "--store", store, env=env, code=STORE, error="AccessDenied")
    assert cold("list", "--store", store, "--json", env=weed.env).json == []


def test_no_credentials(cold, memory, weed):
    env = {"DATABASE_URL": memory, **weed.env, "AWS_SECRET_ACCESS_KEY": None, "AWS_ACCESS_KEY_ID": None}
    cold.refused("snapshot", "--store", weed.url(), env=env, code=STORE, error="AccessDenied")


# --- documents ---------------------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    """One bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def edit(path: Path, **members: object) -> None:
    """A manifest with other members and a checksum that fits."""
    body = json.loads(path.read_bytes()) | members
    body.pop("checksum")
    body["checksum"] = hashlib.sha256(model.canonical(body)).hexdigest()
    path.write_bytes(model.canonical(body) + b"\n")


DAMAGE = {
    "a bit": (lambda s: flip(s.document), "CorruptDocument", "damaged between byte"),
    "the end": (lambda s: cut(s.document), "TruncatedDocument", "ends at"),
    "all": (lambda s: s.document.unlink(), "CorruptDocument", "missing"),
    "the manifest": (
        lambda s: s.manifest.write_bytes(s.manifest.read_bytes().replace(b'"rows":6', b'"rows":7')),
        "CorruptManifest",
        "checksum",
    ),
    "half the manifest": (lambda s: cut(s.manifest), "CorruptManifest", "readable"),
    "the format": (lambda s: edit(s.manifest, format="coldstore/2"), "UnsupportedFormat", "coldstore/2"),
}


@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_damage(cold, memory, target, what, compression):
    damage, error, word = DAMAGE[what]
    stored = take(memory, cold.folder / "coldstore-data", compression=compression)
    damage(stored)
    before = everything(target)
    told = cold.refused("restore", "--to", target, code=DOCUMENT, error=error)
    assert word in told["message"]
    assert Path(told["key"]) in {Path(stored.info.path), Path(stored.info.manifest)}
    assert everything(target) == before
    verified = cold("verify", "--all", "--deep", "--json", code=DAMAGED)
    assert verified.err == ""
    assert verified.json["ok"] is False
    assert len(verified.json["results"][0]["problems"]) == 1
    spoken = cold("verify", "--all", "--deep", code=DAMAGED)
    assert spoken.err == ""
    assert spoken.out.splitlines()[-1] == "1 checked deeply, 1 damaged"
    if what != "a bit":  # that is what --deep is for
        assert cold("verify", "--all", "--json", code=DAMAGED).json["ok"] is False


def test_a_damaged_snapshot_hides_no_other(cold, stored):
    stored.manifest.write_bytes(b"{}")
    whole = cold("snapshot", "--json", env={"DATABASE_URL": stored.url}).json
    listed = cold("list", "--json").json
    assert listed[0]["id"] == whole["id"]
    assert listed[1]["error"] == "CorruptManifest"
    assert "damaged" in cold("list").out
    assert [r["ok"] for r in cold("verify", "--all", "--json", code=DAMAGED).json["results"]] == [True, False]


@pytest.mark.parametrize("what", ["newer", "stranger", "empty", "cut", "no json", "flipped"])
def test_a_file_that_cannot_be_restored(cold, stored, target, what):
    plain = stored.document.read_bytes()
    content, error = {
        "newer": (plain.replace(b'"format":"coldstore/1"', b'"format":"coldstore/2"'), "UnsupportedFormat"),
        "stranger": (plain.replace(b'"format":"coldstore/1"', b'"format":"frozen/9"'), "UnsupportedFormat"),
        "empty": (b"", "TruncatedDocument"),
        "cut": (plain[:-200], "TruncatedDocument"),
        "no json": (b"daily_memories;uid\n1;2\n", "CorruptDocument"),
        "flipped": (plain.replace(b'"uid":"uid_bob"', b'"uid":"uid_bob', 1), "CorruptDocument"),
    }[what]
    (cold.folder / "alone.json").write_bytes(content)
    before = everything(target)
    cold.refused("restore", "--file", "alone.json", "--to", target, code=DOCUMENT, error=error)
    assert everything(target) == before


# --- the same millisecond ----------------------------------------------------------------------------------------------------------


class Stopped(Source):
    """A database whose clock stands still."""

    @contextmanager
    def moment(self, *arguments, **options):
        with super().moment(*arguments, **options) as moment:
            moment.timestamp = 1772071200000
            yield moment


def test_two_snapshots_in_the_same_millisecond(cold, memory):
    folder = cold.folder / "coldstore-data"
    numbers = itertools.count()

    def snapshot(_: int) -> str:
        compression = ["none", "gzip", "zstd"][next(numbers) % 3]
        with ColdStore(build({}, {"database_url": memory, "path": str(folder), "compression": compression})) as store:
            store.__dict__["source"] = Stopped(memory)
            return store.snapshot().id

    with ThreadPoolExecutor(12) as pool:
        made = list(pool.map(snapshot, range(12)))
    assert sorted(made) == [f"memory-all-{1772071200000 + n}" for n in range(12)]
    assert [i["id"] for i in cold("list", "--json").json] == sorted(made, reverse=True)
    assert cold("verify", "--all", "--deep", "--json").json["checked"] == 12
    assert json.loads((folder / "latest/all.json").read_bytes())["id"] == max(made)
    assert len(files(folder / "snapshots")) == 24


def test_many_programs_at_once(cold, memory):
    running = [cold.start("snapshot", "--uid", "uid_alice", "--json", env={"DATABASE_URL": memory}) for _ in range(6)]
    told = [(p.communicate(timeout=120), p.returncode) for p in running]
    assert [code for _, code in told] == [0] * 6
    assert len({json.loads(out)["id"] for (out, _), _ in told}) == 6
    assert cold("verify", "--all", "--deep", "--json").json["checked"] == 6


def test_the_source_is_never_written_to(cold, memory):
    before = everything(memory)
    cold("snapshot", env={"DATABASE_URL": memory})
    cold("snapshot", "--each-user", env={"DATABASE_URL": memory})
    assert everything(memory) == before
    assert ask(memory, "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'coldstore%'") == [(0,)]
