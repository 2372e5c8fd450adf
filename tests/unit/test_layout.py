"""Scopes to names and back, ids to keys and back, whatever a uid looks like."""

from __future__ import annotations

import posixpath
import re
from datetime import UTC, datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coldstore.errors import NotFound
from coldstore.storage import layout
from coldstore.storage.store import check_key
from coldstore.tiers import EVERYBODY, Scope

HOSTILE = [
    "", ".", "..", "../../x", "/etc/passwd", "a/b", "a\\b", "C:\\x", "all", "All", "ALL", "%61ll", "%2561ll", "%", "%00", "%0", "%zz",
    "ws~x", "ws~", "~", "~root", "-", "--", "-rf", "a-1740621600000", "1740621600000", "memory-all-1", "x.manifest.json", "x.json", ".json",
    "trailing.", "trailing...", "trailing ", " ", "\t", "a b", "\0", "\0\0", "a\0b", "\n", "a\nb", "\r\n", "😀", "👩‍👩‍👧", "é", "e\u0301",
    "\ud800", "\udfff\ud800", "\ud83d\ude00", "\ufeff", "\u202e", "ALICE", "alice", "Alice", "ß", "con", "NUL", "a:b", "a*b", 'a"b', "a'b", "$(x)",
    "a@example.org", "a+b@example.org", "auth0|5f7c8ec7", "x" * 180, "x" * 181, "x" * 4096, "é" * 60, "é" * 61, "😀" * 1024, "." * 200,
    "a" * 179 + "é", "a" * 146 + "é" * 40, "a" * 147 + "é" * 40, "a" * 145 + "é" * 40,
]  # fmt: skip

uids = st.sampled_from(HOSTILE) | st.text(st.characters(), max_size=80) | st.text(st.sampled_from("a.~%/61lws-\0é"), max_size=12)
scopes = st.just(EVERYBODY) | uids.map(Scope.user) | uids.map(Scope.of_workspace)
timestamps = st.integers(0, 253402300799999)  # to the end of the year 9999
SUFFIXES = ["", ".gz", ".zst", ".enc", ".zst.enc", ".gz.enc"]


@settings(deadline=None)
@given(scopes)
def test_a_name_tells_its_scope(scope):
    name = layout.scope_name(scope)
    parsed = layout.parse_scope_name(name)
    assert parsed.name == name
    assert re.fullmatch(r"(ws~)?([A-Za-z0-9._@+-]|%[0-9A-F]{2})+(~[0-9a-f]{32})?", name)
    if parsed.scope is None:
        assert re.search(r"~[0-9a-f]{32}\Z", name)
        assert scope.value == "\0" or len(name) > 140
    else:
        assert parsed.scope == scope


@settings(deadline=None, max_examples=75)
@given(st.lists(scopes, max_size=40))
def test_no_two_scopes_share_a_name(found):
    assert len({layout.scope_name(s) for s in found}) == len(set(found))


def test_a_shortened_name_has_only_whole_escapes():
    for value in HOSTILE:
        assert not re.search(r"%(?![0-9A-F]{2})", layout.scope_name(Scope.user(value)))


def test_no_two_hostile_scopes_share_a_name():
    every = [EVERYBODY, *map(Scope.user, HOSTILE), *map(Scope.of_workspace, HOSTILE)]
    assert len(set(every)) == len(every)
    assert len({layout.scope_name(s) for s in every}) == len(every)


@settings(deadline=None, max_examples=75)
@given(st.text(st.sampled_from("%~.ws0123456789abcdefAlL@+-é\0"), max_size=20) | st.sampled_from(HOSTILE))
def test_what_names_a_scope_is_that_scopes_name(name):
    """Whatever an object is called: it is read as a scope only if that scope is written so."""
    parsed = layout.parse_scope_name(name)
    if parsed.scope is not None:
        assert layout.scope_name(parsed.scope) == name


@pytest.mark.parametrize("name", ["%FF", "ws~%FF", "%zz", "%", "%4", "%41", "a%2f", "ws~ws~a", "é", "", "ws~", "a/b", ".."])
def test_names_of_strangers(name):
    assert layout.parse_scope_name(name) == layout.ScopeName(name, None)


def test_documented_names():
    assert layout.scope_name(EVERYBODY) == "all"
    assert layout.scope_name(Scope.user("uid_alice")) == "uid_alice"
    assert layout.scope_name(Scope.user("all")) == "%61ll"
    assert layout.scope_name(Scope.user("%61ll")) == "%2561ll"
    assert layout.scope_name(Scope.user("ws~x")) == "ws%7Ex"
    assert layout.scope_name(Scope.of_workspace("x")) == "ws~x"
    assert layout.scope_name(Scope.of_workspace("all")) == "ws~all"
    assert layout.scope_name(Scope.user("../../x")) == "%2E.%2F..%2Fx"
    assert layout.scope_name(Scope.user("a+b@example.org")) == "a+b@example.org"
    assert layout.scope_name(Scope.user("😀")) == "%F0%9F%98%80"
    assert layout.scope_name(Scope.user("")) == "%00"
    assert layout.scope_name(Scope.user("Alice")) != layout.scope_name(Scope.user("alice"))


@settings(deadline=None, max_examples=75)
@given(scopes, timestamps, st.sampled_from(SUFFIXES), uids)
@example(Scope.of_workspace("x" * 4096), 253402300799999, ".zst.enc", "😀" * 1024)
def test_keys_stay_below_their_folder(scope, timestamp, suffix, label):
    identity = layout.snapshot_id(scope, timestamp)
    keys = {
        layout.document_key(identity, suffix): layout.folder_of(identity),
        layout.manifest_key(identity): layout.folder_of(identity),
        layout.latest_key(scope): "latest/",
        layout.checkpoint_key(scope, label): f"checkpoints/{layout.scope_name(scope)}/",
    }
    for key, folder in keys.items():
        assert check_key(key) == key
        assert key.isascii()
        assert posixpath.normpath(f"/root/{key}") == f"/root/{key}"
        assert posixpath.dirname(key) + "/" == folder
        assert all(0 < len(part) <= 255 and not part.startswith(".") for part in key.split("/"))


@pytest.mark.parametrize("longest", [".manifest.json", ".json.zst.enc"])
def test_the_longest_file_name(longest):
    for value in HOSTILE:
        for scope in (Scope.user(value), Scope.of_workspace(value)):
            assert len(layout.snapshot_id(scope, 999999999999999) + longest) <= 255


@settings(deadline=None, max_examples=75)
@given(scopes, timestamps, st.sampled_from(SUFFIXES))
def test_a_key_tells_its_snapshot(scope, timestamp, suffix):
    identity = layout.snapshot_id(scope, timestamp)
    name = layout.scope_name(scope)
    assert layout.parse_id(identity) == (name, timestamp)
    document = layout.parse_key(layout.document_key(identity, suffix))
    manifest = layout.parse_key(layout.manifest_key(identity))
    assert document == layout.SnapshotKey(identity, name, timestamp, f".json{suffix}")
    assert manifest == layout.SnapshotKey(identity, name, timestamp, ".manifest.json")
    assert manifest.is_manifest
    assert not document.is_manifest


@settings(deadline=None, max_examples=75)
@given(scopes, st.integers(100_000_000, 10**12), st.integers(1, 99_999))
def test_a_key_object_tells_its_snapshot(scope, timestamp, number):
    """Also of users who are called like one: their own objects are no keys."""
    identity = layout.snapshot_id(scope, timestamp)
    key = layout.keys_key(identity, number)
    assert key.startswith(layout.keys_prefix(identity))
    parsed = layout.parse_key(key)
    assert (parsed.id, parsed.timestamp, parsed.is_keys, parsed.is_manifest) == (identity, timestamp, True, False)
    hostile = layout.snapshot_id(Scope.user(f"{layout.scope_name(scope)}-{timestamp}.keys"), timestamp + 1)
    for document in (layout.document_key(hostile, ".enc"), layout.manifest_key(hostile)):
        if "~" not in hostile.removeprefix("memory-ws~"):  # not shortened
            assert layout.parse_key(document).id == hostile
        assert not layout.parse_key(document).is_keys


@settings(deadline=None)
@given(timestamps)
def test_a_deletion_record_tells_its_moment(timestamp):
    key = layout.deletion_key(timestamp, "0a1b2c3d")
    assert key.startswith(f"deletions/{layout.date_of(timestamp)}/")
    assert layout.parse_deletion_key(key) == timestamp


@pytest.mark.parametrize("key", ["", "deletions/x", "deletions/2026-02-26/readme", "deletions/2026-02-26/5.json", "deletions/5-0a.json"])
def test_what_is_no_deletion_record(key):
    assert layout.parse_deletion_key(key) == 0


def test_documented_keys():
    timestamp = 1772071200000
    assert datetime.fromtimestamp(timestamp / 1000, UTC).isoformat() == "2026-02-26T02:00:00+00:00"
    identity = layout.snapshot_id(Scope.user("uid_alice"), timestamp)
    assert identity == "memory-uid_alice-1772071200000"
    assert layout.document_key(identity) == "snapshots/2026-02-26/memory-uid_alice-1772071200000.json"
    assert layout.document_key(identity, ".zst") == "snapshots/2026-02-26/memory-uid_alice-1772071200000.json.zst"
    assert layout.manifest_key(identity) == "snapshots/2026-02-26/memory-uid_alice-1772071200000.manifest.json"
    assert layout.latest_key(EVERYBODY) == "latest/all.json"
    assert layout.checkpoint_key(Scope.user("a"), "before the move/2") == "checkpoints/a/before%20the%20move%2F2.json"


@pytest.mark.parametrize(
    ("timestamp", "date"),
    [(0, "1970-01-01"), (86399999, "1970-01-01"), (86400000, "1970-01-02"), (951782400000, "2000-02-29"), (1772063999999, "2026-02-25")],
)
def test_the_date_is_that_of_utc(timestamp, date):
    assert layout.date_of(timestamp) == date


@settings(deadline=None, max_examples=75)
@given(scopes, timestamps, timestamps, st.booleans())
@example(Scope.of_workspace("x" * 4096), 253402300799999, 999999999999999, False)
def test_a_drills_key_tells_its_outcome(scope, taken, ended, proven):
    identity = layout.snapshot_id(scope, taken)
    key = layout.drill_key(identity, ended, proven=proven)
    assert check_key(key) == key
    assert layout.parse_drill_key(key) == layout.DrillKey(identity, ended, proven)
    assert layout.parse_key(key) is None
    assert all(len(part) <= 255 for part in key.split("/"))


@settings(deadline=None)
@given(st.text(max_size=40) | st.text(st.sampled_from("memory-all17/.json%~provenfailed"), max_size=60))
def test_any_text_is_a_drills_key_or_none(text):
    for key in (text, f"drills/{text}", f"drills/memory-all-1/{text}"):
        parsed = layout.parse_drill_key(key)
        assert parsed is None or key == layout.drill_key(parsed.id, parsed.timestamp, proven=parsed.proven)


@pytest.mark.parametrize(
    "key",
    [
        "drills/memory-all-1/1-unsure.json",
        "drills/memory-all-1/01-proven.json",
        "drills/memory-all-1/-proven.json",
        "drills/memory-all-1/1-proven.json\n",
        "drills/memory-all-1/1-proven",
        "drills/memory-all/1-proven.json",
        "drills/memory-all-1/x/1-proven.json",
        "drills/1-proven.json",
        "other/memory-all-1/1-proven.json",
    ],
)
def test_what_is_no_drills_key(key):
    assert layout.parse_drill_key(key) is None


STRANGERS = [
    "",
    "snapshots/",
    "snapshots/2026-02-26/",
    "snapshots/2026-02-26/memory-all-1772071200000",
    "snapshots/2026-02-25/memory-all-1772071200000.json",  # not that day
    "snapshots/2026-02-26/memory-all-1772071200000/x.json",
    "snapshots/2026-02-26/x/memory-all-1772071200000.json",
    "snapshots/2026-02-26/memory--1772071200000.json",
    "snapshots/2026-02-26/memory-all.json",
    "snapshots/2026-02-26/memory-a b-1772071200000.json",
    "snapshots/2026-02-26/memory-é-1772071200000.json",
    "snapshots/2026-02-26/memory-all-1772071200000\n.json",
    "snapshots/2026-02-26/notes.txt",
    "snapshots/2026-02-26/.tmp-memory-all-1772071200000.json",
    "snapshots/٢٠٢٦-02-26/memory-all-1772071200000.json",
    "snapshots/2026-02-26/memory-all-١٧٧٢٠٧١٢٠٠٠٠٠.json",
    "snapshots/33658-09-27/memory-all-999999999999999.json",
    "snapshots/9999-12-31/memory-all-999999999999999.json",
    "snapshots/2026-02-26/memory-all-9999999999999999.json",
    "other/2026-02-26/memory-all-1772071200000.json",
    "/snapshots/2026-02-26/memory-all-1772071200000.json",
    "latest/all.json",
]


@pytest.mark.parametrize("key", STRANGERS)
def test_objects_of_strangers(key):
    assert layout.parse_key(key) is None


@settings(deadline=None)
@given(st.text(max_size=40) | st.text(st.sampled_from("snapshots/2026-memory-all.json17%~"), max_size=60))
def test_any_text_is_a_key_or_none(text):
    for key in (text, f"snapshots/{text}", f"snapshots/2026-02-26/memory-{text}"):
        parsed = layout.parse_key(key)
        assert parsed is None or key == f"{layout.folder_of(parsed.id)}{parsed.id}{parsed.suffix}"


@pytest.mark.parametrize(
    "identity",
    [
        "",
        "all",
        "memory-all",
        "memory-all-",
        "memory--1",
        "memory-all-1x",
        "memory-all-1\n",
        "memory-a/b-1",
        "memory-../x-1",
        "memory-all-1" + "0" * 15,
        "memory-é-1",
        "memory-all--",
        "Memory-all-1",
        "memory-all-1.json",
    ],
)
def test_what_is_no_id(identity):
    for call in (layout.parse_id, layout.folder_of, layout.document_key, layout.manifest_key):
        with pytest.raises(NotFound) as caught:
            call(identity)
        assert caught.value.hint


@pytest.mark.parametrize("timestamp", [253402300800000, 999999999999999])
def test_a_timestamp_beyond_the_calendar(timestamp):
    identity = layout.snapshot_id(EVERYBODY, timestamp)
    for call in (layout.folder_of, layout.document_key, layout.manifest_key):
        with pytest.raises(NotFound):
            call(identity)
