"""The doctor without a place: how diagnoses come about, settings and keys, clocks, and that no secret is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstore.app import ColdStore
from coldstore.codec.sign import SigningKey
from coldstore.config import build
from coldstore.diagnosis import Clock, Doubt, Look, NotChecked, diagnose
from coldstore.doctor import DRIFT, TOO_MUCH_DRIFT, _agreeing, _numeric, examine
from coldstore.errors import DoctorFailed, StoreError
from coldstore.keyrings.local import make_key_file


def raising(error: Exception):
    def look() -> str:
        raise error

    return look


def examined(tmp_path, **settings):
    """name → diagnosis of a store in a folder, without a database."""
    with ColdStore(build({"path": str(tmp_path / "store"), **settings}, {})) as store:
        return {d.name: d for d in examine(store, database=False).diagnoses}


def test_what_a_look_raises_is_its_state():
    looks = [
        Look("a", lambda: "fine"),
        Look("b", raising(Doubt("hm", hint="look"))),
        Look("c", raising(NotChecked("no way"))),
        Look("d", raising(StoreError("no", hint="do"))),
    ]
    found = [(d.state, d.detail, d.hint) for d in diagnose(looks)]
    assert found == [("ok", "fine", None), ("warning", "hm", "look"), ("skipped", "no way", None), ("failed", "no", "do")]


def test_a_defect_is_not_taken_for_a_finding():
    with pytest.raises(ZeroDivisionError):
        list(diagnose([Look("a", lambda: str(1 // 0))]))


def test_after_a_needed_one_nothing_is_tried():
    looks = [
        Look("a", raising(Doubt("hm")), needed=True),
        Look("b", raising(DoctorFailed("no")), needed=True),
        Look("c", raising(AssertionError())),
    ]
    found = list(diagnose(looks))
    assert [d.state for d in found] == ["warning", "failed", "skipped"]
    assert "b" in found[2].detail


def test_details_hold_no_password():
    (found,) = diagnose([Look("a", lambda: "sftp://me:hunter2@host/x is there")])
    assert "hunter2" not in found.detail


# --- clocks ------------------------------------------------------------------------------------------------------------------------

seconds = st.floats(-1e6, 1e6)
margins = st.floats(0, 10)


@given(seconds, margins, seconds, margins)
def test_clocks_that_differ_for_certain(a, a_margin, b, b_margin):
    clocks = {"this machine": Clock(0.0, 0.0), "the database": Clock(a, a_margin), "the store": Clock(b, b_margin)}
    certain = max(abs(a) - a_margin, abs(b) - b_margin, abs(a - b) - a_margin - b_margin)
    (found,) = diagnose([Look("clocks", lambda: _agreeing(clocks))])
    expected = "failed" if certain > TOO_MUCH_DRIFT else "warning" if certain > DRIFT else "ok"
    assert found.state == expected
    assert (found.hint is None) == (expected == "ok")


def test_the_pair_that_differs_most_is_named():
    clocks = {"this machine": Clock(0.0, 0.0), "the database": Clock(3.0, 0.0), "the store": Clock(-4.0, 0.5)}
    with pytest.raises(Doubt, match=r"the database and the store differ by 6\.5 s"):
        _agreeing(clocks)
    with pytest.raises(NotChecked):
        _agreeing({"this machine": Clock(0.0, 0.0)})


# --- settings and keys -------------------------------------------------------------------------------------------------------------


def test_nothing_switched_on(tmp_path):
    found = examined(tmp_path)
    assert {n for n, d in found.items() if d.state == "skipped"} == {"keys: rings", "signing key", "trusted keys", "store: retention"}
    assert all(d.state in {"ok", "skipped"} for d in found.values()), found
    assert [p for p in (tmp_path / "store").rglob("*") if p.is_file()] == []


def test_keys_are_tried(tmp_path):
    key = make_key_file(tmp_path / "key")
    signer = SigningKey.generate()
    found = examined(tmp_path, key_rings=[f"local:{tmp_path / 'key'}"], signing_key=signer.text(), require_signature=True)
    assert (found["keys: local"].state, found["keys: local"].detail) == ("ok", f"{key} wraps and opens")
    assert found["signing key"].detail == f"signs as {signer.did}"
    assert found["trusted keys"].detail == "1 trusted; a signature is required"


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"key_rings": ["local:missing.key"]}, "keys: rings"),
        ({"key_rings": ["nonsense"]}, "keys: rings"),
        ({"signing_key": "coldstore-signing-key-1:nonsense"}, "signing key"),
        ({"trusted_keys": ["did:key:zNonsense"]}, "trusted keys"),
        ({"require_signature": True}, "trusted keys"),
        ({"tiers": {"a": {"array": "x"}, "b": {"array": "x"}}}, "configuration: tiers"),
    ],
)
def test_what_is_wrong_with_settings(tmp_path, settings, name):
    found = examined(tmp_path, **settings)
    assert (found[name].state, bool(found[name].detail)) == ("failed", True)
    assert [n for n, d in found.items() if d.state == "failed" and n != name] == []
    assert found["store: delete"].state == "ok"


def test_a_store_that_cannot_be_named(tmp_path):
    found = examined(tmp_path, backend="s3")
    assert found["store: address"].state == "failed"
    assert "store: reachable" not in found


@pytest.mark.parametrize(
    ("url", "numeric"),
    [("http://127.0.0.1:9000", True), ("http://[::1]:9000", True), ("http://s3.example.com", False), ("http://localhost:1", False)],
)
def test_servers_without_host_names(url, numeric):
    assert _numeric(url) == numeric
