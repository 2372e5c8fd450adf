"""Every version of one memory that the snapshots of a store hold: when it came, when it changed and how, when it went.

    keys of the owner's snapshots and of everybody's → one row out of each, by the bytes of its key → versions, newest first

No database is asked. Each snapshot is read on its own, as many at once as there are readers: of a full one the frames of the tier are
looked through for the key, of an incremental one only what it holds, and where it holds nothing of the row, what its parent said goes on.
A snapshot that cannot be read, or that is suspect, is passed over with a note: what it does not say must not pass for a deletion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType

from coldstore import catalog
from coldstore.catalog import rfc3339
from coldstore.codec.pipeline import ordered_map
from coldstore.differ import ColumnChange, RowDiffer
from coldstore.document import model
from coldstore.documents import Owner, StoredDocument
from coldstore.errors import ColdStoreError, ConfigError, NotFound
from coldstore.storage.layout import SnapshotKey
from coldstore.storage.store import Store
from coldstore.tiers import EVERYBODY, Scope

_READERS = 4


class Sighting(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A snapshot, and its moment."""

    id: str
    snapshot_at: str


class Version(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What the memory was from `first` to `last`, the oldest and the newest snapshot that say so. `there`: it was in the oldest snapshot
    that was looked at, so nothing tells how it came. `columns`: what is different from the version before."""

    change: Literal["there", "added", "changed", "removed"]
    first: Sighting
    last: Sighting
    row: Raw | UnsetType = UNSET
    columns: list[ColumnChange] | UnsetType = UNSET


class History(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """`versions`: newest first. `snapshots`: how many were looked at."""

    uid: str | None
    tier: str
    key: dict[str, str]
    versions: list[Version]
    snapshots: int
    notes: list[str]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One memory. `key`: the primary key's value, or `column=value` for each of its columns, as a document has them."""

    scope: Scope
    tier: str
    key: Sequence[str]

    def table_of(self, manifest: model.Manifest) -> model.Table | None:
        return next((t for t in manifest.schema.tables if self.tier in {t.tier, t.array}), None)

    def values(self, table: model.Table) -> dict[str, str]:
        """Key column → value. Raises `ConfigError` for a key that is not this table's."""
        if not table.key:
            raise ConfigError(f"{table.tier} has no primary key, so none of its rows can be followed")
        if len(table.key) == len(self.key) == 1:
            return {table.key[0]: self.key[0]}
        found = dict(text.partition("=")[::2] for text in self.key)
        if found.keys() != {*table.key} or len(found) != len(self.key):
            example = " ".join(f"--key {column}=…" for column in table.key)
            raise ConfigError(f"a key of {table.tier} is {', '.join(table.key)}", hint=f"Name each of them once: {example}")
        return found


def history(
    store: Store,
    wanted: Wanted,
    *,
    opened: Callable[[model.Manifest], StoredDocument],
    since: str | None = None,
    until: str | None = None,
) -> History:
    """`since` and `until`: UTC days, both inclusive. `opened` makes a manifest's document readable. Raises `NotFound` when no snapshot has
    ever held the row, and `ConfigError` for a key that is none."""

    def look(key: SnapshotKey) -> _Look | str:
        try:
            return _look(catalog.read_manifest(store, key.id), wanted, opened)
        except ConfigError:
            raise
        except ColdStoreError as exc:
            return f"{key.id} was passed over: {exc}"

    line = _Timeline()
    keys = _keys(store, wanted.scope, since, until)
    with closing(ordered_map(look, keys, workers=_READERS)) as found:
        for answer in found:
            line.take(answer)
    if not any(v.row is not UNSET for v in line.versions):
        notes = f" ({line.notes[0]})" if line.notes else ""
        raise NotFound(
            f"no snapshot of {wanted.scope} or of everybody holds this row of {wanted.tier}{notes}",
            hint="Check the tier and the key: it is written as `coldstore cat` prints it.",
        )
    return History(
        uid=wanted.scope.uid,
        tier=wanted.tier,
        key=line.key,
        versions=line.versions[::-1],
        snapshots=line.looked_at,
        notes=line.notes,
    )


def _keys(store: Store, scope: Scope, since: str | None, until: str | None) -> list[SnapshotKey]:
    """Oldest first."""
    found = [key for s in {scope, EVERYBODY} for key in catalog.keys(store, scope=s, since=since)]
    return sorted((k for k in found if until is None or rfc3339(k.timestamp)[:10] <= until), key=lambda k: (k.timestamp, k.id))


# --- one snapshot ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Look:
    """What one snapshot says. `row` is None when the memory is not in it; `unchanged`: it says nothing, and its parent's word holds."""

    manifest: model.Manifest
    table: model.Table
    key: dict[str, str]
    row: bytes | None = None
    unchanged: bool = False


def _look(manifest: model.Manifest, wanted: Wanted, opened: Callable[[model.Manifest], StoredDocument]) -> _Look | str:
    if catalog.scope_of(manifest) not in {wanted.scope, EVERYBODY}:
        return ""  # another's, whose name was shortened to the same
    if manifest.suspect is not None:
        return f"{manifest.id} was passed over: it is suspect ({manifest.suspect})"
    table = wanted.table_of(manifest)
    if table is None:
        return ""
    key = wanted.values(table)
    document = opened(manifest)
    row = _row(document, table, key)
    if row is not None:
        owned = wanted.scope == EVERYBODY or Owner.of(wanted.scope, [table]).owns(table.array, row)
        return _Look(manifest, table, key, row if owned else None)
    gone = manifest.kind != model.INCREMENTAL or table.array in manifest.resets or _is_deleted(document, table, key)
    return _Look(manifest, table, key, unchanged=not gone)


def _row(document: StoredDocument, table: model.Table, key: Mapping[str, str]) -> bytes | None:
    """The row with this key, whose ever it is."""
    first, *others = [_holder({column: value}, table) for column, value in key.items()]
    with closing(document.parts([table.array], first)) as parts:
        for part in parts:
            for row in map(bytes, part.rows()):
                if all(other.owns(table.array, row) for other in others):
                    return row
    return None


def _holder(column: Mapping[str, str], table: model.Table) -> Owner:
    """Picks the rows with this value, as it picks those of an owner."""
    ((name, value),) = column.items()
    padded = {table.array} if any(c.name == name and c.type.startswith(("character(", "bpchar")) for c in table.columns) else ()
    return Owner(value, {table.array: name}, blank_padded=padded)


def _is_deleted(document: StoredDocument, table: model.Table, key: Mapping[str, str]) -> bool:
    with closing(document.parts([model.DELETED])) as parts:
        for part in parts:
            for line in part.rows():
                said = msgspec.json.decode(line, type=_Deleted)
                if said.array == table.array and all(_text(said.key.get(c)) == v for c, v in key.items()):
                    return True
    return False


class _Deleted(msgspec.Struct):
    array: str
    key: dict[str, Raw]


msgspec.json.Decoder(_Deleted)  # worked out on one thread, as in `model`


def _text(raw: Raw | None) -> str | None:
    text = None if raw is None else bytes(raw)
    return msgspec.json.decode(text, type=str) if text and text[:1] == b'"' else text.decode() if text else None


# --- all of them -------------------------------------------------------------------------------------------------------------------


class _Timeline:
    """What the snapshots say, oldest first, as versions."""

    def __init__(self) -> None:
        self.versions: list[Version] = []
        self.notes: list[str] = []
        self.looked_at = 0
        self.key: dict[str, str] = {}
        self._said: dict[str, tuple[bytes | None, model.Table]] = {}
        self._current: tuple[bytes | None, model.Table] | None = None

    def take(self, answer: _Look | str) -> None:
        if isinstance(answer, str):
            self.notes += [answer] if answer else []
            return
        said: tuple[bytes | None, model.Table] | None = (answer.row, answer.table)
        if answer.unchanged:
            said = self._said.get(answer.manifest.parent.id) if answer.manifest.parent else None
            if said is None:
                self.notes.append(
                    f"{answer.manifest.id} was passed over: it says nothing of this row, and what it is built on was not read"
                )
                return
        assert said is not None  # noqa: S101 — just seen
        self.looked_at += 1
        self.key = answer.key
        self._said[answer.manifest.id] = said
        self._see(Sighting(id=answer.manifest.id, snapshot_at=answer.manifest.snapshot_at), *said)

    def _see(self, where: Sighting, row: bytes | None, table: model.Table) -> None:
        before, self._current = self._current, (row, table)
        columns = list(_changes(before, (row, table)))
        if before is not None and (row is None) == (before[0] is None) and not columns:
            if self.versions:
                self.versions[-1] = msgspec.structs.replace(self.versions[-1], last=where)
        elif row is not None:
            change: Literal["there", "added", "changed"] = "there" if before is None else "added" if before[0] is None else "changed"
            shown = columns if change == "changed" else UNSET
            self.versions.append(Version(change=change, first=where, last=where, row=Raw(row), columns=shown))
        elif before is not None:
            self.versions.append(Version(change="removed", first=where, last=where))


def _changes(before: tuple[bytes | None, model.Table] | None, after: tuple[bytes | None, model.Table]) -> Iterable[ColumnChange]:
    if before is None or before[0] is None or after[0] is None or before[0] == after[0]:
        return ()
    return RowDiffer(before[1], after[1]).columns(before[0], after[0])
