"""`coldstore keygen`: files of keys, made and changed."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest

from coldstore.codec.sign import SigningKey
from coldstore.keyrings.local import LocalRing
from tests.acceptance.program import Program, check_refusal, files

CONFIG, KEYS = 2, 10


def secrets_of(path: Path) -> list[str]:
    return re.findall(r"[A-Za-z0-9+/]{43}=", path.read_text())


def test_a_key_file_from_its_making_to_the_end_of_a_key(cold: Program):
    path = cold.folder / "keys"
    made = cold("keygen", "keys")
    (first,) = LocalRing.read(path).key_ids
    assert first in made.out
    assert "Without this file nobody opens" in made.out
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    rotated = cold("keygen", "keys", "--rotate", "--json").json
    assert rotated == {"key": LocalRing.read(path).key_ids[0], "path": "keys"}
    assert LocalRing.read(path).key_ids[1:] == (first,)
    assert "still open" in cold("keygen", "keys", "--rotate").out

    (old,) = [s for s in secrets_of(path) if first in path.read_text().partition(s)[0][-18:]]
    retired = cold("keygen", "keys", "--retire", first)
    assert first in retired.out
    assert old not in path.read_text()
    assert f"retired:{first}:" in path.read_text()
    third = LocalRing.read(path).key_ids[1]
    assert cold("keygen", "keys", "--retire", third, "--json").json == {"key": third, "path": "keys"}
    assert files(cold.folder) == ["keys"]
    for told in (made, retired):
        assert not [s for s in [old, *secrets_of(path)] if s in told.out + told.err]


def test_a_signing_key(cold: Program):
    told = cold("keygen", "signer", "--sign", "--json")
    path = cold.folder / "signer"
    key = SigningKey.parse(path.read_text())
    assert told.json == {"did": key.did, "path": "signer"}
    assert key.did.startswith("did:key:z6Mk")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    other = cold("keygen", "other", "--sign")
    assert SigningKey.parse((cold.folder / "other").read_text()).did in other.out
    assert not [s for s in secrets_of(cold.folder / "other") if s in other.out]


@pytest.mark.parametrize(
    "arguments",
    [["--rotate", "--sign"], ["--retire", "0123456789abcdef", "--rotate"], ["--retire", "0123456789abcdef", "--sign"], ["more"]],
)
def test_one_thing_at_a_time(cold: Program, arguments):
    cold.refused("keygen", "keys", *arguments, code=CONFIG, error="ConfigError")
    assert files(cold.folder) == []


def test_what_is_there_stays(cold: Program):
    cold("keygen", "keys")
    text = (cold.folder / "keys").read_text()
    (current,) = LocalRing.read(cold.folder / "keys").key_ids
    refusals = [cold.refused("keygen", "keys", *arguments, code=KEYS, error="KeyRingError") for arguments in ([], ["--sign"])]
    for key in (current, "nonsense"):  # one after the other: two who change a file at once exclude each other
        told = cold("keygen", "keys", "--retire", key, "--json", code=CONFIG)
        refusals.append(check_refusal(told, code=CONFIG, error="ConfigError"))
    assert not [s for s in secrets_of(cold.folder / "keys") if s in str(refusals)]
    assert (cold.folder / "keys").read_text() == text


def test_a_file_that_is_not_there_cannot_be_changed(cold: Program):
    cold.refused("keygen", "keys", "--rotate", code=KEYS, error="KeyRingError")
    cold.refused("keygen", "keys", "--retire", "0123456789abcdef", code=KEYS, error="KeyRingError")
    cold.refused("keygen", "no/keys", code=KEYS, error="KeyRingError")
    assert files(cold.folder) == []
