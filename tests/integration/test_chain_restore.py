"""Chains of real incrementals back into real databases: what comes back is what was there at each moment, table by table."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from coldstore import restore as restoring
from coldstore.app import ColdStore
from coldstore.chained import ChainDocument, summed
from coldstore.config import build
from coldstore.document import model
from coldstore.errors import (
    ChainBroken,
    ChainRefused,
    ColdStoreError,
    ConfigError,
    ContentMismatch,
    CorruptDocument,
    NotFound,
    TargetNotEmpty,
)
from coldstore.storage import layout
from tests.integration.helpers import ask, everything, run, table_text

TABLES = (
    """CREATE TABLE notes (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, uid text, body text, props jsonb DEFAULT '{}', raw json,
    size int GENERATED ALWAYS AS (length(body)) STORED)""",
    "CREATE INDEX notes_uid ON notes (uid)",
    'CREATE TABLE "Odd One" ("the key" numeric, "at" timestamptz, uid text, "line" text, PRIMARY KEY ("the key", "at"))',
)
TIERS = {"notes": {"table": "notes"}, "odd": {"table": '"Odd One"'}}
OFF = {name: {"enabled": False} for name in ("daily_memories", "graph_entities", "procedural_memory")}
ROUNDS = (
    [
        "UPDATE notes SET body = body || '!' WHERE id % 7 = 0",
        "DELETE FROM notes WHERE id % 11 = 0",
        "INSERT INTO notes (uid, body, raw) VALUES ('u1', 'new', '[1.0, \"x\\u0000\"]'), (NULL, 'nobody''s', 'null')",
        'UPDATE "Odd One" SET "the key" = "the key" * 1.00 WHERE uid = \'u2\'',
    ],
    [
        "UPDATE notes SET uid = 'u3' WHERE uid = 'u1' AND id % 2 = 0",
        "UPDATE notes SET body = left(body, -1) WHERE id % 7 = 0 AND id < 30",
        'UPDATE "Odd One" SET "at" = "at" + interval \'1 second\' WHERE uid = \'u0\'',
        "DELETE FROM \"Odd One\" WHERE uid = 'u1'",
    ],
    ['TRUNCATE "Odd One"', "INSERT INTO \"Odd One\" VALUES (7, '2026-01-01Z', 'u1', 'only')", "DELETE FROM notes WHERE uid = 'u2'"],
    ["INSERT INTO notes (uid, body) SELECT 'u' || g % 4, 'late ' || g FROM generate_series(1, 50) g"],
)


class Lived:
    """A database that goes through the rounds, its snapshots, and what was in it at each of them."""

    def __init__(self, cold: ColdStore, url: str) -> None:
        self.cold, self.url = cold, url
        self.ids: list[str] = []
        self.states: list[dict[str, Any]] = []

    def take(self, *, incremental: bool = True, **more: Any) -> str:
        info = self.cold.snapshot_incremental(**more) if incremental else self.cold.snapshot(**more)
        assert info is not None
        self.ids.append(info.id)
        self.states.append(tables(self.url))
        return info.id

    def live(self, rounds=ROUNDS, **more: Any) -> None:
        self.take(incremental=False, **{k: v for k, v in more.items() if k != "prove"})
        for statements in rounds:
            run(self.url, *statements)
            self.take(**more)


def tables(url: str, where: str = "true") -> dict[str, Any]:
    return {name: table_text(url, name, where=where) for name in ("public.notes", 'public."Odd One"')}


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    return {"path": str(folder), "tiers": {**TIERS, **OFF}, "jobs": 2, "frame_mb": 1, **more}


@pytest.fixture
def source(make_database) -> str:
    url = make_database(empty=True)
    run(
        url,
        *TABLES,
        "INSERT INTO notes (uid, body, props) SELECT 'u' || g % 4, 'body ' || g, jsonb_build_object('n', g) FROM generate_series(1, 200) g",
        "INSERT INTO \"Odd One\" SELECT g * 1.50, timestamptz '2026-01-01Z' + g * interval '1 microsecond', 'u' || g % 4, 'l' || g"
        " FROM generate_series(1, 60) g",
    )
    return url


@pytest.fixture
def lived(source, tmp_path):
    with ColdStore(build(settings(tmp_path / "store"), {"database_url": source})) as cold:
        cold.init(change_capture=True)
        yield Lived(cold, source)


def bring(cold: ColdStore, target: str, snapshot: str | None = None, **more: Any):
    return cold.restore(snapshot, to=target, **more)


# --- what comes back ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prove", [True, False])
def test_every_moment_of_a_chain(lived, make_database, prove):
    lived.live(prove=prove)
    for snapshot, state in zip(lived.ids, lived.states, strict=True):
        target = make_database(empty=True)
        report = bring(lived.cold, target, snapshot)
        assert tables(target) == state
        assert report.verified == "content"
        assert [s.id for s in report.steps] == (lived.ids[: lived.ids.index(snapshot) + 1] if snapshot != lived.ids[0] else [])
        assert report.as_dict()["rows"] == {"notes": len(state["public.notes"]), "odd": len(state['public."Odd One"'])}
        run(target, "INSERT INTO notes (uid, body) VALUES ('after', 'the sequence goes on')")
    assert len(ask(target, "SELECT indexname FROM pg_indexes WHERE schemaname = 'public'")) == 3


def test_in_many_small_groups(lived, make_database, monkeypatch):
    monkeypatch.setattr(restoring, "_CHANGES", 1)
    lived.live()
    target = make_database(empty=True)
    bring(lived.cold, target)
    assert tables(target) == lived.states[-1]


@pytest.mark.parametrize("uid", ["u0", "u1", "u2", "u3"])
def test_one_user_out_of_everybodys_chain(lived, make_database, uid):
    lived.live()
    for snapshot in lived.ids[1:]:
        state = lived.states[lived.ids.index(snapshot)]
        mine = {name: [row for row in rows if uid in row] for name, rows in state.items()}
        target = make_database(empty=True)
        if any(mine.values()):
            assert bring(lived.cold, target, snapshot, uid=uid).verified == "content"
            assert tables(target) == mine
        else:
            with pytest.raises(NotFound, match=uid):
                bring(lived.cold, target, snapshot, uid=uid)


@pytest.mark.parametrize("uid", ["u1", "u3"])
def test_the_users_own_chain(lived, make_database, uid):
    lived.live(uid=uid)
    for snapshot, state in zip(lived.ids, lived.states, strict=True):
        target = make_database(empty=True)
        bring(lived.cold, target, snapshot)
        assert tables(target) == {name: [row for row in rows if uid in row] for name, rows in state.items()}


def test_sealed_signed_and_compressed(source, tmp_path, make_database):
    from coldstore.codec.sign import SigningKey
    from coldstore.keyrings.keyfile import Key

    more = {
        "key": Key.new().text(),
        "seal": True,
        "compression": "zstd",
        "signing_key": SigningKey.generate().text(),
        "require_signature": True,
    }
    with ColdStore(build(settings(tmp_path / "store", **more), {"database_url": source})) as cold:
        cold.init(change_capture=True)
        lived = Lived(cold, source)
        lived.live(prove=True)
        target = make_database(empty=True)
        assert bring(cold, target).verified == "content"
        assert tables(target) == lived.states[-1]
        assert all(v.ok for v in cold.verify(deep=True))


@pytest.mark.parametrize("mode", ["replace", "merge"])
def test_into_tables_that_are_there(lived, make_database, mode):
    lived.live()
    target = make_database(empty=True)
    bring(lived.cold, target, lived.ids[0])
    with pytest.raises(TargetNotEmpty):
        bring(lived.cold, target)
    bring(lived.cold, target, mode=mode, on_conflict="update" if mode == "merge" else "fail")
    if mode == "replace":
        assert tables(target) == lived.states[-1]
    else:
        assert {n: set(rows) <= set(tables(target)[n]) for n, rows in lived.states[-1].items()} == dict.fromkeys(lived.states[-1], True)


def test_back_into_the_source_and_on(lived, make_database):
    """What a restore does to a table with capture is a change like any other."""
    lived.live()
    bring(lived.cold, lived.url, lived.ids[1], mode="replace")
    assert tables(lived.url) == lived.states[1]
    last = lived.take()
    target = make_database(empty=True)
    bring(lived.cold, target, last)
    assert tables(target) == lived.states[1]


def test_keys_that_only_postgres_tells_apart(make_database, tmp_path):
    """'24 hours' and '1 day' are one key; so are two writings of it that differ from link to link."""
    url = make_database(empty=True)
    run(
        url,
        "CREATE TABLE notes (id interval PRIMARY KEY, uid text, body text)",
        "INSERT INTO notes VALUES ('1 day', 'u', 'a'), ('2 days', 'u', 'b')",
    )
    with ColdStore(build({"path": str(tmp_path / "store"), "tiers": {"notes": TIERS["notes"], **OFF}}, {"database_url": url})) as cold:
        cold.init(change_capture=True)
        cold.snapshot()
        for statement in (
            "UPDATE notes SET id = '24 hours', body = 'c' WHERE id = '1 day'",
            "UPDATE notes SET id = '1 day', body = 'd' WHERE id = '1 day'",
            "DELETE FROM notes WHERE id = '48 hours'",
        ):
            run(url, statement)
            info = cold.snapshot_incremental(prove=True)
            target = make_database(empty=True)
            bring(cold, target, info.id)
            assert table_text(target, "public.notes") == table_text(url, "public.notes")
        with pytest.raises(ChainRefused, match="only PostgreSQL"):
            cold.compact(info.id)


def test_partitions(make_database, tmp_path):
    url = make_database(empty=True)
    run(
        url,
        "CREATE TABLE notes (id int, uid text, body text, PRIMARY KEY (id, uid)) PARTITION BY LIST (uid)",
        "CREATE TABLE notes_a PARTITION OF notes FOR VALUES IN ('a')",
        "CREATE TABLE notes_rest PARTITION OF notes DEFAULT",
        "INSERT INTO notes SELECT g, (ARRAY['a', 'b', 'c'])[1 + g % 3], 'x' FROM generate_series(1, 60) g",
    )
    with ColdStore(build({"path": str(tmp_path / "store"), "tiers": {"notes": TIERS["notes"], **OFF}}, {"database_url": url})) as cold:
        cold.init(change_capture=True)
        cold.snapshot()
        run(
            url,
            "UPDATE notes SET uid = 'a' WHERE uid = 'b' AND id < 20",
            "DELETE FROM notes_a WHERE id > 40",
            "UPDATE notes_rest SET body = 'y'",
        )
        cold.snapshot_incremental()
        target = make_database(empty=True)
        bring(cold, target)
        assert table_text(target, "public.notes") == table_text(url, "public.notes")
        assert table_text(target, "public.notes_a") == table_text(url, "public.notes_a")


def test_columns_that_the_target_lacks(lived, make_database):
    lived.live()
    target = make_database(empty=True)
    run(target, "CREATE TABLE notes (id bigint PRIMARY KEY, uid text, body text, raw json)")
    report = bring(lived.cold, target, allow_missing_columns=True, tiers=["notes"])
    assert report.verified == "counts"
    columns = ["id", "uid", "body", "raw"]
    assert table_text(target, "public.notes", columns=columns) == table_text(lived.url, "public.notes", columns=columns)


# --- a moment -----------------------------------------------------------------------------------------------------------------------


def said(snapshot: str, later: int = 0) -> str:
    return datetime.fromtimestamp((layout.parse_id(snapshot)[1] + later) / 1000, UTC).isoformat(timespec="milliseconds")


def test_the_nearest_to_a_moment(lived, make_database):
    lived.live()
    for snapshot, state in zip(lived.ids, lived.states, strict=True):
        target = make_database(empty=True)
        report = bring(lived.cold, target, at=said(snapshot))
        assert (report.document, tables(target)) == (snapshot, state)
    with pytest.raises(NotFound, match="yet at that moment"):
        lived.cold.document(at=said(lived.ids[0], -1))
    assert lived.cold.document(at=said(lived.ids[1], -1)).name == lived.ids[0]


def test_everybodys_or_ones_own_whichever_is_nearer(lived):
    lived.live(ROUNDS[:1])
    own = lived.cold.snapshot(uid="u1").id
    run(lived.url, *ROUNDS[1])
    last = lived.take()
    now = said(last)
    assert lived.cold.document(at=now, uid="u1").name == last
    assert lived.cold.document(at=said(last, -1), uid="u1").name == own
    assert lived.cold.document(at=said(last, -1), uid="u2").name == lived.ids[1]
    assert lived.cold.document(at=said(last, -1)).name == lived.ids[1]


@pytest.mark.parametrize("at", ["2026-03-05T14:30:00", "2026-03-05", "yesterday", "", "14:30"])
def test_a_moment_without_its_offset_is_none(lived, at):
    with pytest.raises(ConfigError):
        lived.cold.document(at=at)


def test_a_moment_that_is_yet_to_come(lived):
    lived.live(())
    with pytest.raises(ConfigError, match="yet to come"):
        lived.cold.document(at="2999-01-01T00:00:00Z")


def test_a_dry_run_says_the_steps(lived, make_database):
    lived.live()
    target = make_database(empty=True)
    report = bring(lived.cold, target, dry_run=True)
    assert [(s.id, s.kind) for s in report.steps] == [(i, "incremental" if n else "full") for n, i in enumerate(lived.ids)]
    assert report.as_dict()["rows"] == {"notes": len(lived.states[-1]["public.notes"]), "odd": 1}
    assert report.snapshot_at == lived.cold.manifest(lived.ids[-1]).snapshot_at
    assert ask(target, "SELECT count(*) FROM pg_class WHERE relname = 'notes'") == [(0,)]


# --- what is refused ----------------------------------------------------------------------------------------------------------------


def untouched(lived: Lived, target: str, error: type[ColdStoreError], **more: Any) -> str:
    before = everything(target)
    with pytest.raises(error) as caught:
        bring(lived.cold, target, **more)
    assert everything(target) == before
    return str(caught.value)


def test_a_hole(lived, make_database):
    lived.live()
    lived.cold.store.delete(layout.manifest_key(lived.ids[2]))
    assert lived.ids[2] in untouched(lived, make_database(empty=True), ChainBroken)


@pytest.mark.parametrize("number", [0, 2, 4])
def test_a_flipped_bit_in_any_link(lived, make_database, tmp_path, number):
    lived.live()
    manifest = lived.cold.manifest(lived.ids[number])
    path = tmp_path / "store" / manifest.document
    data = bytearray(path.read_bytes())
    frame = next(f for f in manifest.frames if f.rows)
    data[frame.offset + frame.length // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    assert manifest.document in untouched(lived, make_database(empty=True), CorruptDocument)


def test_what_is_not_what_the_last_link_claims(lived, make_database):
    lived.live(prove=True)
    key = layout.manifest_key(lived.ids[-1])
    manifest = lived.cold.manifest(lived.ids[-1])
    state = [msgspec.structs.replace(t, digest="0" * 32) for t in manifest.state or []]
    lived.cold.store.replace(key, model.encode_manifest(model.complete(msgspec.structs.replace(manifest, state=state))))
    untouched(lived, make_database(empty=True), ContentMismatch)


def test_an_incremental_file_without_its_store(lived, make_database, tmp_path):
    lived.live(ROUNDS[:1])
    path = tmp_path / "store" / lived.cold.manifest(lived.ids[-1]).document
    assert "only what changed" in untouched(lived, make_database(empty=True), ChainBroken, file=path)
    loose = tmp_path / "loose.json"
    loose.write_bytes(path.read_bytes())
    assert "only what changed" in untouched(lived, make_database(empty=True), ChainBroken, file=loose)


def test_a_restored_database_does_not_go_on_with_the_old_chain(lived, make_database):
    lived.live()
    target = make_database(empty=True)
    bring(lived.cold, target)
    flags = {"database_url": target}
    with ColdStore(build(settings(Path(lived.cold.settings.path or "")), flags)) as other:
        with pytest.raises(ChainRefused):
            other.snapshot_incremental()
        other.init(change_capture=True)
        with pytest.raises(ChainRefused):
            other.snapshot_incremental()
        assert other.snapshot_incremental(auto_full=True).kind == "full"


# --- made into one ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prove", [True, False])
def test_compacted(lived, make_database, prove):
    lived.live(prove=prove)
    for number in range(1, len(lived.ids)):
        made = lived.cold.compact(lived.ids[number])
        target = make_database(empty=True)
        report = bring(lived.cold, target, made.id)
        assert (made.kind, report.steps) == ("full", [])
        assert tables(target) == lived.states[number]
        chain = lived.cold.document(lived.ids[number])
        assert isinstance(chain, ChainDocument)
        manifest = lived.cold.manifest(made.id)
        assert manifest.tiers == summed(chain)
        assert (manifest.built_from, manifest.database, manifest.schema) == (chain.name, chain.manifest.database, chain.schema)
    assert all(v.ok for v in lived.cold.verify(deep=True))


def test_the_chain_goes_on_after_its_copy(lived, make_database):
    lived.live(ROUNDS[:2], prove=True)
    copy = lived.cold.compact(lived.ids[-1]).id
    run(lived.url, *ROUNDS[2])
    last = lived.take()
    assert lived.cold.manifest(last).parent.id == lived.ids[2] != copy
    target = make_database(empty=True)
    bring(lived.cold, target)
    assert tables(target) == lived.states[-1]


def test_a_full_one_is_not_compacted(lived):
    lived.live(())
    with pytest.raises(ChainRefused, match="no incremental"):
        lived.cold.compact(lived.ids[0])
