"""Who may call the HTTP API: how keys are written down, which of them count, and that no message repeats one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstore.config import build
from coldstore.config import load as load_settings
from coldstore.errors import ConfigError
from coldstore.http import keys
from coldstore.http.keys import Caller, Keys, load, parse

ONE = "first-key-of-sixteen"
TWO = "second:key:with:colons"


def settings(**given):
    return build(given, {})


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch):
    for name in ("COLD_STORE_API_KEY", "COLD_STORE_API_KEYS", "COLD_STORE_SERVER_KEYS_FILE"):
        monkeypatch.delenv(name, raising=False)


def test_one_key_may_do_everything():
    assert load(settings(api_key=ONE)).who(ONE.encode()) == Caller("default", "admin")


def test_several_each_with_its_role():
    found = load(settings(api_keys=f"ops:admin:{ONE}, dash:read:{TWO}"))
    assert (found.who(ONE.encode()), found.who(TWO.encode())) == (Caller("ops", "admin"), Caller("dash", "read"))
    assert len(found) == 2


def test_all_places_together(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# of the dashboard\n\ndash:read:{TWO}\n")
    file.chmod(0o600)
    found = load(settings(api_key=ONE, server_keys_file=str(file)))
    assert found.who(ONE.encode())
    assert found.who(TWO.encode())


@given(st.binary(max_size=60))
def test_nothing_else_is_a_key(given):
    assert Keys([(Caller("a", "admin"), ONE)]).who(given) == (Caller("a", "admin") if given == ONE.encode() else None)


@pytest.mark.parametrize("wrong", [ONE[:-1], ONE + "x", ONE.upper(), f" {ONE}", ""])
def test_nearly_a_key_is_none(wrong):
    assert Keys([(Caller("a", "admin"), ONE)]).who(wrong.encode()) is None


def test_only_hashes_are_kept():
    assert ONE.encode() not in repr(vars(Keys([(Caller("a", "admin"), ONE)]))).encode()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "has no key"),
        ({"api_key": "tiny-7f"}, "shorter than 16"),
        ({"api_key": "fifteen-letters"}, "shorter than 16"),
        ({"api_key": "a key with blanks in it"}, "no header can carry"),
        ({"api_key": "schlüssel-mit-umlaut"}, "no header can carry"),
        ({"api_keys": f"ops:admin:{ONE},just-a-long-key-alone"}, "entry 2 of COLD_STORE_API_KEYS is no API key"),
        ({"api_keys": f"ops:owner:{ONE}"}, "no role"),
        ({"api_keys": f":admin:{ONE}"}, "is no API key"),
        ({"api_keys": "ops:admin:"}, "shorter than 16"),
        ({"api_keys": f"ops:admin:{ONE},ops:read:{TWO}"}, "same name"),
        ({"api_key": ONE, "api_keys": f"ops:read:{ONE}"}, "same secret"),
    ],
)
def test_what_is_refused(given, told):
    with pytest.raises(ConfigError, match=told) as caught:
        load(settings(**given))
    assert caught.value.hint
    for value in given.values():
        for part in value.split(","):
            secret = part.split(":", 2)[-1]
            assert not secret or secret not in f"{caught.value}{caught.value.hint}"


@pytest.mark.parametrize("mode", [0o644, 0o606, 0o602])
def test_a_file_that_everybody_may_read_or_change_is_refused(tmp_path, mode):
    file = tmp_path / "keys"
    file.write_text(f"ops:admin:{ONE}\n")
    file.chmod(mode)
    with pytest.raises(ConfigError, match="everybody on this machine") as caught:
        load(settings(server_keys_file=str(file)))
    assert ONE not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="there is no file of API keys"):
        load(settings(server_keys_file=str(tmp_path / "none")))


def test_a_file_with_remarks_alone_holds_no_key(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# later\n")
    file.chmod(0o600)
    with pytest.raises(ConfigError, match="has no key"):
        load(settings(server_keys_file=str(file)))


def test_where_an_entry_stands_is_told_by_its_line():
    with pytest.raises(ConfigError, match=r"entry 3 of keys\.txt"):
        list(parse(["# a", "", "nonsense"], what="keys.txt"))


def test_settings_do_not_print_keys():
    assert ONE not in repr(settings(api_key=ONE, api_keys=f"a:read:{ONE}"))
    assert keys.SHORTEST == 16


def test_the_file_is_beside_the_configuration(tmp_path, monkeypatch):
    """Wherever the program is started."""
    file = tmp_path / "api-keys"
    file.write_text(f"ops:admin:{ONE}\n")
    file.chmod(0o600)
    config = tmp_path / "coldstore.toml"
    config.write_text('[server]\nkeys_file = "api-keys"\nport = 9000\n')
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = load_settings(config=config, environ={})
    assert found.server_port == 9000
    assert load(found).who(ONE.encode()) == Caller("ops", "admin")


def test_a_key_does_not_belong_into_the_configuration(tmp_path):
    config = tmp_path / "coldstore.toml"
    config.write_text(f'[server]\napi_key = "{ONE}"\n')
    with pytest.raises(ConfigError) as caught:
        load_settings(config=config, environ={})
    assert ONE not in f"{caught.value}{caught.value.hint}"
