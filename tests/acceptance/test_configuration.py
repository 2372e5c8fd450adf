"""coldstore.toml, the environment and flags: who wins, and that nothing is silently passed over."""

from __future__ import annotations

import json

import pytest

from tests.acceptance.conftest import ROWS
from tests.acceptance.program import execute, files

CONFIG = 2


@pytest.fixture
def write(cold):
    return (cold.folder / "coldstore.toml").write_text


def refused(cold, **options):
    return cold.refused("list", code=CONFIG, error="ConfigError", **options)


# --- precedence --------------------------------------------------------------------------------------------------------------------


def test_flags_before_environment_before_file(cold, memory, write):
    write('[store]\npath = "from-file"\n[snapshot]\ncompression = "gzip"\n')
    env = {"DATABASE_URL": memory}
    assert cold("snapshot", "--json", env=env).json["codec"] == "gzip"
    assert cold("snapshot", "--json", env={**env, "COLD_STORE_COMPRESSION": "zstd"}).json["codec"] == "zstd"
    flag = cold("snapshot", "--json", "--compression", "none", env={**env, "COLD_STORE_COMPRESSION": "zstd"})
    assert flag.json["codec"] == "none"
    assert len(cold("list", "--json").json) == 3
    cold("snapshot", env={**env, "COLD_STORE_PATH": "from-env"})
    cold("snapshot", "--store", "from-flag", env={**env, "COLD_STORE_PATH": "from-env"})
    assert {f.split("/")[0] for f in files(cold.folder)} == {"coldstore.toml", "from-file", "from-env", "from-flag"}


def test_the_database_of_the_flag(cold, memory, empty_database):
    assert cold("snapshot", "--database", memory, "--json", env={"DATABASE_URL": empty_database}).json["rows"]


def test_a_variable_that_is_empty_is_not_set(cold, memory):
    """As compose files leave them."""
    env = {"DATABASE_URL": memory, "COLD_STORE_BACKEND": "", "COLD_STORE_BUCKET": "", "COLD_STORE_READERS": "", "COLD_STORE_OPTIONS": ""}
    cold("snapshot", env=env)
    assert (cold.folder / "coldstore-data").is_dir()


def test_a_file_elsewhere(cold, memory):
    elsewhere = cold.folder.parent / "else where.toml"
    elsewhere.write_text('[store]\npath = "by-config"\n')
    cold("snapshot", "--config", elsewhere, env={"DATABASE_URL": memory})
    assert files(cold.folder) == []  # cron starts anywhere: the file's paths are meant from where the file is
    assert {f.split("/")[0] for f in files(elsewhere.parent / "by-config")} >= {"snapshots"}


@pytest.mark.parametrize(
    ("env", "url"),
    [
        ({}, "coldstore-data"),
        ({"COLD_STORE_PATH": "p"}, "p"),
        ({"COLD_STORE_BACKEND": "local", "COLD_STORE_BUCKET": "folder"}, "folder"),
        ({"COLD_STORE_BACKEND": "local", "COLD_STORE_BUCKET": "folder", "COLD_STORE_PREFIX": "/a/b/"}, "folder/a/b"),
        ({"COLD_STORE_URL": "file:///tmp/no%20such"}, "/tmp/no such"),
        ({"COLD_STORE_URL": "file:///tmp/no", "COLD_STORE_BACKEND": "s3", "COLD_STORE_BUCKET": "b"}, "/tmp/no"),
    ],
)
def test_where_the_store_is(cold, env, url):
    from urllib.parse import unquote

    said = unquote(cold("list", env=env).out)
    where = url if url.startswith("/") else f"{cold.folder}/{url}"
    assert said == f"No snapshots in file://{where}.\n"


# --- tiers -------------------------------------------------------------------------------------------------------------------------


def test_a_tier_more_one_less_and_one_instead(cold, memory, write, target):
    execute(
        memory,
        'CREATE SCHEMA "Weird Sch"',
        'CREATE TABLE "Weird Sch"."Mem Ories" (user_id text, n int PRIMARY KEY, note text)',
        """INSERT INTO "Weird Sch"."Mem Ories" VALUES ('uid_alice', 1, 'kept'), ('uid_alice', 2, 'tmp'), ('uid_bob', 3, NULL)""",
        "CREATE TABLE habits (uid text, habit text)",
        "INSERT INTO habits VALUES ('uid_alice', 'tea')",
    )
    write(
        """
[tiers.store]
table = '"Weird Sch"."Mem Ories"'
uid = "user_id"
where = "note IS DISTINCT FROM 'tmp'"
[tiers.graph_entities]
enabled = false
[tiers.procedural_memory]
table = "habits"
array = "customs"
[tiers.daily_memories]
exclude = ["entries"]
"""
    )
    everybody = cold("snapshot", "--json", env={"DATABASE_URL": memory}).json
    assert everybody["rows"] == {"daily_memories": 6, "procedural_memory": 1, "store": 2}
    document = json.loads((cold.folder / "coldstore-data" / everybody["path"]).read_bytes())
    assert document["store"] == [{"user_id": "uid_alice", "n": 1, "note": "kept"}, {"user_id": "uid_bob", "n": 3, "note": None}]
    assert document["customs"] == [{"uid": "uid_alice", "habit": "tea"}]
    assert "entries" not in document["dailyMemories"][0]
    assert "graphEntities" not in document
    alice = cold("snapshot", "--uid", "uid_alice", "--json", env={"DATABASE_URL": memory}).json
    assert alice["rows"] == {"daily_memories": 3, "procedural_memory": 1, "store": 1}
    restored = cold("restore", "--to", target, "--tier", "store", "--json")
    assert restored.json["rows"] == {"store": 2}


def test_built_in_tiers_that_are_off_can_be_switched_on(cold, memory, write):
    write("[tiers.user_profiles]\nenabled = true\n[tiers.graph_edges]\nenabled = true\n")
    rows = cold("snapshot", "--json", env={"DATABASE_URL": memory}).json["rows"]
    assert list(rows) == ["daily_memories", "graph_entities", "graph_edges", "procedural_memory", "user_profiles"]
    assert {t: n for t, n in rows.items() if n} == {t: 2 * n for t, n in ROWS.items()}


def test_a_tier_of_nobody_is_left_out_of_a_users_snapshot_and_named(cold, memory, write):
    execute(memory, "CREATE TABLE facts (fact text)", "INSERT INTO facts VALUES ('x')")
    write("[tiers.facts]\n")
    env = {"DATABASE_URL": memory}
    assert cold("snapshot", "--json", env=env).json["rows"]["facts"] == 1
    alice = cold("snapshot", "--uid", "uid_alice", "--json", env=env).json
    assert alice["omittedTiers"] == ["facts"]
    assert "facts" not in alice["rows"]
    assert "left out  facts" in cold("snapshot", "--uid", "uid_alice", env=env).out


# --- what is refused ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("[stor]\n", "[stor]", "store"),
        ("[store]\nbukcet = 1\n", "'bukcet'", "bucket"),
        ("[snapshot]\ncompresion = 1\n", "'compresion'", "compression"),
        ("[tiers.a]\ntabel = 'x'\n", "'tiers.a.tabel'", "table"),
        ("[snapshots]\n", "[snapshots]", "snapshot"),
        ("compression = 'zstd'\n", "'compression'", "[snapshot]"),
        ("[store]\nreaders = 2\n", "'readers'", "[snapshot]"),
        ("database_url = 'x'\n", "'database_url'", "DATABASE_URL"),
        ("[store]\napi_key = 'x'\n", "'api_key'", "COLD_STORE_API_KEY"),
        ("[whatever]\n", "[whatever]", "Known are"),
    ],
)
def test_unknown_keys(cold, write, text, says, hint):
    write(text)
    told = refused(cold)
    assert says in told["message"]
    assert "coldstore.toml" in told["message"]
    assert hint in told["hint"]


@pytest.mark.parametrize(
    ("name", "hint"), [("COLD_STORE_BUKCET", "COLD_STORE_BUCKET"), ("COLD_STORE_QQQQQQQQQQQQQQQ", "Known are"), ("COLD_STORE_TIERS", "")]
)
def test_unknown_variables(cold, name, hint):
    told = refused(cold, env={name: "x"})
    assert name in told["message"]
    assert hint in told["hint"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[snapshot]\ncompression = 'lzma'\n", "[snapshot] compression of coldstore.toml"),
        ("[snapshot]\nreaders = 0\n", "[snapshot] readers"),
        ("[snapshot]\nframe_mb = 'eight'\n", "[snapshot] frame_mb"),
        ("[store]\nbackend = 's4'\n", "[store] backend"),
        ("[restore]\nmaintenance_work_mem = '1; DROP TABLE x'\n", "[restore] maintenance_work_mem"),
        ("[tiers.a]\nuid = 5\n", "tiers.a.uid"),
        ("[tiers]\na = 5\n", "tiers.a"),
        ("tiers = 5\n", "tiers"),
        ("store = 5\n", "store"),
    ],
)
def test_wrong_values_in_the_file(cold, write, text, says):
    write(text)
    told = refused(cold)
    assert says in told["message"]
    assert "coldstore.toml" in told["message"]


def test_wrong_values_elsewhere_are_named_as_they_were_given(cold, memory):
    assert refused(cold, env={"COLD_STORE_READERS": "many"})["message"].startswith("COLD_STORE_READERS: ")
    assert refused(cold, env={"COLD_STORE_BACKEND": "s4"})["message"].startswith("COLD_STORE_BACKEND: ")
    assert refused(cold, env={"COLD_STORE_OPTIONS": "no json"})["message"] == "COLD_STORE_OPTIONS is not JSON"
    told = cold.refused("snapshot", "--compression", "lzma", env={"DATABASE_URL": memory}, code=CONFIG, error="ConfigError")
    assert told["message"].startswith("--compression: ")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[tiers.x]\narray = 'dailyMemories'\n", "'dailyMemories'"),
        ("[tiers.x]\narray = 'schema'\n", "'schema'"),
        ("[tiers.'a b']\n", "'a b'"),
        ("[tiers]\ndaily_memories.enabled = false\ngraph_entities.enabled = false\nprocedural_memory.enabled = false\n", "no tier"),
    ],
)
def test_tiers_that_cannot_be(cold, memory, write, text, says):
    write(text)
    told = cold.refused("snapshot", env={"DATABASE_URL": memory}, code=CONFIG, error="ConfigError")
    assert says in told["message"]
    assert files(cold.folder) == ["coldstore.toml"]


@pytest.mark.parametrize("column", ["no_such", "Uid"])
def test_a_column_that_is_not_there(cold, memory, write, column):
    write(f"[tiers.daily_memories]\nuid = '{column}'\n")
    told = cold.refused("snapshot", env={"DATABASE_URL": memory}, code=CONFIG, error="ConfigError")
    assert column in told["message"]


@pytest.mark.parametrize("content", [b"[store\n", b"\xff\xfe\x00", b"a = \n", b"[a]\n[a]\n"])
def test_a_file_that_is_no_toml(cold, content):
    (cold.folder / "coldstore.toml").write_bytes(content)
    assert "coldstore.toml is not TOML" in refused(cold)["message"]


def test_a_file_that_is_not_there(cold):
    told = cold.refused("list", "--config", "no-such.toml", code=CONFIG, error="ConfigError")
    assert "no-such.toml" in told["message"]


def test_a_bucket_without_its_backend(cold):
    assert "COLD_STORE_BACKEND" in refused(cold, env={"COLD_STORE_BUCKET": "b"})["hint"]
    assert "COLD_STORE_BUCKET" in refused(cold, env={"COLD_STORE_BACKEND": "s3"})["hint"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["snapshot", "--store", ""],
        ["snapshot", "--database", ""],
        ["list", "--store", ""],
        ["restore", "--to", ""],
        ["restore", "--to", " "],
    ],
)
def test_a_shell_variable_that_was_not_set(cold, memory, arguments):
    """`--store "$STORE"`: not a snapshot into wherever the default is, nor a restore into whatever libpq likes best."""
    told = cold.refused(*arguments, env={"DATABASE_URL": memory}, code=CONFIG, error="ConfigError")
    assert "is empty" in told["message"]
    assert files(cold.folder) == []
