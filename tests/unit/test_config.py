"""Settings: sources and their order, tiers, and errors that name where a value came from and never the value."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstore import config
from coldstore.config import SECTIONS, Settings, build, load
from coldstore.errors import ConfigError
from coldstore.tiers import BUILT_IN


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch, tmp_path):
    """No variable of ours, and a folder without a file."""
    import os

    for name in [n for n in os.environ if n.startswith("COLD_STORE_") or n == "DATABASE_URL"]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_defaults():
    settings = load()
    assert (settings.store_url(), settings.compression, settings.database_url) == ("coldstore-data", "none", None)
    assert [t.name for t in settings.enabled_tiers()] == ["daily_memories", "graph_entities", "procedural_memory"]


def test_every_setting_has_one_place():
    """In a section of the file, or, being a secret, in none; and a description for the reference."""
    placed = [name for names in SECTIONS.values() for name in names]
    assert len(placed) == len(set(placed))
    assert set(Settings.model_fields) - set(placed) == {"database_url", "api_key", "api_keys", "key", "signing_key", "runs_url", "tiers"}
    assert all(field.description for field in Settings.model_fields.values())


def test_flags_then_environment_then_file(monkeypatch):
    Path("coldstore.toml").write_text("[snapshot]\nreaders = 3\nwriters = 3\nframe_mb = 3\n")
    monkeypatch.setenv("COLD_STORE_READERS", "5")
    monkeypatch.setenv("COLD_STORE_WRITERS", "5")
    settings = load(flags={"readers": 7, "frame_mb": None})
    assert (settings.readers, settings.writers, settings.frame_mb) == (7, 5, 3)


def test_options_of_file_and_environment_are_joined(monkeypatch):
    Path("coldstore.toml").write_text('[store.options]\na = 1\nb = "file"\n')
    monkeypatch.setenv("COLD_STORE_OPTIONS", '{"b": "environment", "c": {"d": 2}}')
    assert load().options == {"a": 1, "b": "environment", "c": {"d": 2}}


@pytest.mark.parametrize(
    ("values", "url"),
    [
        ({}, "coldstore-data"),
        ({"path": "p", "bucket": "b", "backend": "local"}, "p"),
        ({"bucket": "b", "backend": "local"}, "b"),
        ({"path": "p", "prefix": "/x/"}, "p/x"),
        ({"bucket": "b", "backend": "s3"}, "s3://b"),
        ({"bucket": "b", "backend": "s3", "prefix": "/x/y/"}, "s3://b/x/y"),
        ({"bucket": "b", "backend": "gcs", "prefix": "x"}, "gs://b/x"),
        ({"bucket": "b", "backend": "gcs", "url": "memory://m"}, "memory://m"),
    ],
)
def test_the_store_as_one_url(values, url):
    assert build(values, {}).store_url() == url


@pytest.mark.parametrize("values", [{"backend": "s3"}, {"backend": "gcs"}, {"bucket": "b"}, {"path": "s3://b"}, {"path": "file:///x"}])
def test_half_a_store(values):
    with pytest.raises(ConfigError) as caught:
        build(values, {}).store_url()
    assert caught.value.hint


def tiers(**wishes) -> dict[str, config.Tier]:
    return {t.name: t for t in build({"tiers": wishes}, {}).all_tiers()}


def test_tiers_are_merged_member_by_member():
    changed = tiers(daily_memories={"where": "true"})["daily_memories"]
    assert (changed.table, changed.where, changed.enabled) == ("daily_memories", "true", True)
    assert tiers(graph_edges={"enabled": True})["graph_edges"].enabled
    assert not tiers(graph_edges={"where": "true"})["graph_edges"].enabled
    assert tiers(daily_memories={"exclude": ["a", "b"]})["daily_memories"].exclude == ("a", "b")


def test_new_tiers_come_after_the_built_in_ones_and_are_on():
    merged = tiers(zebra={}, ant={"table": '"A b"."C d"', "enabled": False})
    assert list(merged) == [*(t.name for t in BUILT_IN), "zebra", "ant"]
    assert (merged["zebra"].table, merged["zebra"].enabled, merged["zebra"].array) == ("zebra", True, "zebra")
    assert (merged["ant"].table, merged["ant"].enabled) == ('"A b"."C d"', False)


def test_a_tier_that_is_nobodys():
    """`uid = false` is another wish than none: the usual column is not looked for."""
    assert tiers(x={})["x"].uid is None
    assert tiers(x={"uid": False, "workspace": False})["x"].uid == ""
    assert tiers(x={"uid": "owner"})["x"].uid == "owner"


def test_two_tiers_cannot_write_one_array():
    with pytest.raises(ConfigError, match="dailyMemories"):
        build({"tiers": {"x": {"array": "dailyMemories"}}}, {}).enabled_tiers()
    one_off = {"x": {"array": "dailyMemories"}, "daily_memories": {"enabled": False}}
    assert "x" in [t.name for t in build({"tiers": one_off}, {}).enabled_tiers()]


@given(st.text(min_size=1).filter(lambda s: "\0" not in s))
def test_a_value_that_is_wrong_is_not_repeated(value):
    """It may be a secret that stands in the wrong place."""
    marked = f"marked-{value}-marked"
    for name in ("readers", "compression", "backend", "checksums", "maintenance_work_mem", "path_style", "options"):
        with pytest.raises(ConfigError) as caught:
            build({name: marked}, {})
        assert marked not in str(caught.value) + str(caught.value.hint)
        assert caught.value.__cause__ is None


def test_secrets_do_not_print(monkeypatch):
    monkeypatch.setenv("COLD_STORE_API_KEY", "hidden-key")
    settings = load(flags={"database_url": "postgresql://u:hidden-word@h/d"})
    assert "hidden" not in repr(settings) + str(settings) + settings.model_dump_json()
    assert settings.require_database() == "postgresql://u:hidden-word@h/d"


def test_where_a_wrong_value_came_from(monkeypatch):
    Path("coldstore.toml").write_text("[snapshot]\nreaders = 0\n")
    with pytest.raises(ConfigError, match=r"^\[snapshot\] readers of coldstore.toml: "):
        load()
    monkeypatch.setenv("COLD_STORE_READERS", "0")
    with pytest.raises(ConfigError, match=r"^COLD_STORE_READERS: "):
        load()
    with pytest.raises(ConfigError, match=r"^--readers: "):
        load(flags={"readers": 0})


def test_a_file_that_cannot_be_opened(monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    Path("coldstore.toml").write_text("")
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ConfigError, match=r"coldstore\.toml cannot be read: Permission denied"):
        load()


def test_variables_that_are_no_settings(monkeypatch):
    monkeypatch.setenv("COLD_STORE_DEBUG", "1")
    monkeypatch.setenv("COLD_STORE_TARGET_URL", "postgresql:///x")
    assert load().path is None
    monkeypatch.setenv("COLD_STORE_PATHS", "x")
    with pytest.raises(ConfigError) as caught:
        load()
    assert caught.value.hint == "Did you mean COLD_STORE_PATH?"


def test_no_database():
    with pytest.raises(ConfigError) as caught:
        load().require_database()
    assert "DATABASE_URL" in str(caught.value.hint)


def test_assertions_of_a_drill(monkeypatch):
    Path("coldstore.toml").write_text(
        "[drill]\nassertion_timeout = 5\n[[drill.assert]]\nname = 'a'\nsql = 'SELECT true'\n[[drill.assert]]\nname = 'b'\nsql = 'SELECT 1 > 0'\n"
    )
    found = load()
    assert (found.assertion_timeout, [(a.name, a.sql) for a in found.assertions]) == (5, [("a", "SELECT true"), ("b", "SELECT 1 > 0")])
    monkeypatch.setenv("COLD_STORE_ASSERTIONS", '[{"name": "c", "sql": "SELECT false"}]')
    assert [a.name for a in load().assertions] == ["c"]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[[drill.assertions]]\nname = 'a'\nsql = 'x'", r"unknown key 'assertions' in \[drill\]", "assert"),
        ("[[drill.assert]]\nname = 'a'", r"\[drill\] assert.0.sql of coldstore.toml: field required", "configuration.md"),
        ("[[drill.assert]]\nname = 'a'\nsql = ''", r"\[drill\] assert.0.sql of coldstore.toml: string should have", "configuration.md"),
        ("[[drill.assert]]\nname = 'a'\nsql = 'x'\nsqll = 'y'", r"unknown key 'assertions.0.sqll'", "Did you mean sql"),
        ("[drill]\nassertion_timeout = 0", r"\[drill\] assertion_timeout of coldstore.toml", "configuration.md"),
        ("[restore]\nassertion_timeout = 1", "'assertion_timeout' is in the wrong place", "[drill]"),
    ],
)
def test_assertions_that_cannot_be(text, message, hint):
    Path("coldstore.toml").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load()
    assert hint in str(caught.value.hint)


# --- keys and signatures -----------------------------------------------------------------------------------------------------------


def test_lists_have_commas_in_the_environment(monkeypatch):
    Path("coldstore.toml").write_text('[encryption]\nkey_rings = ["local"]\n[signing]\ntrusted_keys = ["did:key:zA"]\n')
    settings = load()
    assert (settings.key_rings, settings.trusted_keys, settings.ring_specs()) == (["local"], ["did:key:zA"], ("local",))
    monkeypatch.setenv("COLD_STORE_KEY_RINGS", "local:a b, aws-kms:alias/x ,")
    monkeypatch.setenv("COLD_STORE_TRUSTED_KEYS", "did:key:zB,did:key:zC")
    settings = load()
    assert settings.ring_specs() == ("local:a b", "aws-kms:alias/x")
    assert settings.trusted_keys == ["did:key:zB", "did:key:zC"]


def test_paths_of_a_file_are_beside_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "c.toml").write_text(
        '[encryption]\nkey_rings = ["local:keys", "local:/abs/keys", "local:~/k", "local", "aws-kms:local:x", "gcp-kms:projects/p"]\n'
        '[signing]\nsigning_key_file = "sub/signing"\n[store]\npath = "store"\n'
    )
    settings = load(config=folder / "c.toml")
    assert settings.key_rings == [
        *[f"local:{folder}/keys", "local:/abs/keys", f"local:{tmp_path}/home/k", "local", "aws-kms:local:x", "gcp-kms:projects/p"]
    ]
    assert (settings.signing_key_file, settings.path) == (f"{folder}/sub/signing", f"{folder}/store")
    monkeypatch.setenv("COLD_STORE_KEY_RINGS", "local:keys")
    monkeypatch.setenv("COLD_STORE_SIGNING_KEY_FILE", "signing")
    settings = load(config=folder / "c.toml")
    assert (settings.key_rings, settings.signing_key_file) == (["local:keys"], "signing")  # as the shell's folder has it


def test_a_key_in_the_environment_is_a_ring(monkeypatch):
    assert load().ring_specs() == ()
    monkeypatch.setenv("COLD_STORE_KEY", "coldstore-key-1:hidden-key")
    monkeypatch.setenv("COLD_STORE_SIGNING_KEY", "coldstore-signing-key-1:hidden-key")
    settings = load()
    assert settings.ring_specs() == ("local",)
    assert "hidden" not in repr(settings) + str(settings) + settings.model_dump_json()


@pytest.mark.parametrize("name", ["key", "signing_key"])
def test_a_key_does_not_belong_into_the_file(name):
    for section in ("encryption", "signing"):
        Path("coldstore.toml").write_text(f'[{section}]\n{name} = "hidden-word"\n')
        with pytest.raises(ConfigError) as caught:
            load()
        assert "hidden" not in str(caught.value) + str(caught.value.hint)
        assert f"COLD_STORE_{name.upper()}" in caught.value.hint


def test_targets_of_the_server(monkeypatch):
    Path("coldstore.toml").write_text('[server.targets]\nscratch = "postgresql://me@db.example.com/scratch"\n')
    assert load().server_targets["scratch"].get_secret_value() == "postgresql://me@db.example.com/scratch"
    monkeypatch.setenv("COLD_STORE_SERVER_TARGETS", '{"away": "postgresql://me:hidden-word@db/x"}')
    found = load().server_targets
    assert found["away"].get_secret_value() == "postgresql://me:hidden-word@db/x"
    assert "hidden" not in repr(load()) + load().model_dump_json()


@pytest.mark.parametrize(
    "url", ["postgresql://me:hidden-word@db/x", "host=db dbname=x password=hidden-word", "host=db password='hidden-word'"]
)
def test_a_targets_password_does_not_belong_into_the_file(url):
    Path("coldstore.toml").write_text(f'[server.targets]\nscratch = "{url}"\n')
    with pytest.raises(ConfigError, match="'scratch'") as caught:
        load()
    assert "hidden" not in str(caught.value) + str(caught.value.hint)
    assert "COLD_STORE_SERVER_TARGETS" in caught.value.hint


@pytest.mark.parametrize("text", ["[signing]\ntrusted_keys = 7\n", "[encryption]\nkey_rings = [1]\n", "[store]\nretain_days = 0\n"])
def test_keys_and_dates_that_cannot_be(text):
    Path("coldstore.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"^\[(signing|encryption|store)\] "):
        load()
