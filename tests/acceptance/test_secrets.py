"""No secret is ever shown or written. Every run of every test here has them in its environment, its results and its files are searched
(`program.SECRETS`, the fixture `cold`); here stand the ways in which one slips out in other programs.
"""

from __future__ import annotations

import json

import pytest

from tests.acceptance.conftest import with_password
from tests.acceptance.program import SECRETS, files, secrets_in
from tests.integration.helpers import everything

DSN = SECRETS["dsn"]


def test_the_search_finds_what_it_should():
    assert secrets_in(b"x" + SECRETS["aws"].encode()) == ["aws"]
    assert secrets_in(b"http://u:awsSecret%2F9b%2B2e@h") == ["aws"]
    assert secrets_in(b"nothing") == []


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:{DSN}@127.0.0.1:1/d",
        f"postgresql://u:{DSN}@no-such-host.invalid/d",
        f"postgresql://u:{DSN}@h:not-a-port/d",
        f"postgresql://u:{DSN}@[::1/d",
        f"postgresql://u:{DSN}@h/d?no_such_option=1",
        f"postgresql+asyncpg://u:{DSN}@127.0.0.1:1/d",
        f"mysql://u:{DSN}@h/d",
        f"host=127.0.0.1 port=1 user=u password={DSN}",
        f"host=127.0.0.1 port=1 user=u password='{DSN} and' more",
        f"hots=127.0.0.1 password={DSN}",
        f"postgresql://127.0.0.1:1/d?user=u&password={DSN}",
        f"postgresql://127.0.0.1:1/d?password={DSN}&no_such_option=1",
    ],
)
def test_a_database_that_does_not_answer(cold, stored, url):
    for arguments, env in ((["snapshot"], {"DATABASE_URL": url}), (["snapshot", "--database", url], {}), (["restore", "--to", url], {})):
        for debug in ({}, {"COLD_STORE_DEBUG": "1"}):
            told = cold(*arguments, env={**env, **debug}, code=None)
            assert told.code in {2, 3}
            assert told.stdout == b""


@pytest.mark.parametrize("password", [f"p@{DSN}", f"p/{DSN}", f"p#{DSN}", f"p?{DSN}", f"p:{DSN}", f"p%zz{DSN}", f"p {DSN}"])
def test_a_password_that_should_have_been_encoded(cold, stored, password):
    """The commonest mistake in a URL: libpq takes a part of the password for the host, the port or the database."""
    url = f"postgresql://u:{password}@127.0.0.1:1/d"
    for arguments, env in ((["snapshot"], {"DATABASE_URL": url}), (["restore", "--to", url], {})):
        assert cold(*arguments, env=env, code=None).code in {2, 3}


def test_arguments_in_the_wrong_place(cold):
    url = f"postgresql://u:{DSN}@h/d"
    for arguments in (
        ["snapshot", url],
        ["snapshot", f"--databse={url}"],
        ["restore", url],
        ["show", url],
        [url],
        ["verify", url],
        ["cat", url],
    ):
        told = cold(*arguments, code=None)
        assert told.code in {2, 6}, arguments
    for arguments in (["--uid", url], ["--workspace", url]):
        cold("restore", *arguments, "--to", "postgresql://postgres@127.0.0.1:1/d", code=None)


def test_the_target(cold, stored, target):
    """In the result, and in what the target keeps of it."""
    result = cold("restore", "--to", target, "--json")
    assert result.json["target"]
    assert DSN in target
    assert secrets_in(repr(everything(target)).encode()) == []
    assert cold("restore", "--to", target, code=7).err


def test_the_store(cold, memory):
    env = {"DATABASE_URL": memory}
    secret = SECRETS["endpoint"]
    for url in (
        f"s3://key:{secret}@bucket/x",
        f"gs://key:{secret}@bucket",
        f"nosuch://u:{secret}@host/x",
        f"http://u:{secret}@127.0.0.1:1/x",
    ):
        told = cold("snapshot", "--store", url, env=env, code=None)
        assert told.code in {2, 4}
        assert cold("list", "--store", url, "--json", env=env, code=None).code in {2, 4}


@pytest.mark.parametrize("host", ["127.0.0.1:1", "no-such-host.invalid"])
def test_the_endpoint(cold, memory, host):
    env = {
        "DATABASE_URL": memory,
        "COLD_STORE_BACKEND": "s3",
        "COLD_STORE_BUCKET": "b",
        "COLD_STORE_ENDPOINT_URL": f"http://user:{SECRETS['endpoint']}@{host}",
        "COLD_STORE_OPTIONS": json.dumps({"config_kwargs": {"retries": {"total_max_attempts": 1}}}),
    }
    told = cold("snapshot", env=env, code=None)
    assert told.code in {2, 4}
    assert told.stdout == b""


@pytest.mark.parametrize(
    "options",
    ['{"secret": "awsSecret/9b+2e"', '["awsSecret/9b+2e"]', '{"no_such": "awsSecret/9b+2e"}', '{"key": {"awsSecret/9b+2e": 1}}'],
)
def test_options_that_are_wrong(cold, memory, options):
    env = {"DATABASE_URL": memory, "COLD_STORE_URL": "s3://b/x", "COLD_STORE_OPTIONS": options, "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    for debug in ({}, {"COLD_STORE_DEBUG": "1"}):
        assert cold("snapshot", env={**env, **debug}, code=None).code in {2, 4}


def test_the_file_holds_none(cold, memory):
    """A secret in coldstore.toml is refused, and not repeated."""
    (cold.folder.parent / "other.toml").write_text(f'database_url = "{memory}"\n[store]\napi_key = "{SECRETS["api"]}"\n')
    told = cold.refused("snapshot", "--config", cold.folder.parent / "other.toml", code=2, error="ConfigError")
    assert "DATABASE_URL" in told["hint"]
    (cold.folder.parent / "other.toml").write_text(f'[store\nurl = "s3://x:{SECRETS["aws"]}@b"')
    cold.refused("snapshot", "--config", cold.folder.parent / "other.toml", code=2, error="ConfigError")


def test_what_is_written(cold, memory):
    """The secret was used: the snapshot is there; the search of the fixture goes through its files."""
    cold("snapshot", env={"DATABASE_URL": with_password(memory)})
    cold("show", cold("list", "--json").json[0]["id"], "--json")
    assert len(files(cold.folder)) == 3
