"""One agent's memory out of this installation, as a bundle, and a bundle into this one: its tables' rows into a database, its own documents
into the store.

The rows come out of a snapshot, never out of the database itself: what is carried is what was proven to be whole. An import changes the
database in one transaction, as every restore does, and the documents after it; run again with the mode `merge` it goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from coldstore import catalog
from coldstore.app import MODES, ON_CONFLICT, ColdStore
from coldstore.bundle import Bundle, Contents, Origin, Record, open_bundle, write_bundle
from coldstore.document import model
from coldstore.document.notes import decode_note
from coldstore.documents import Document, Owner
from coldstore.errors import ConfigError, NotFound, RestoreConflict, TargetNotEmpty
from coldstore.progress import Progress, silent
from coldstore.restore import Report
from coldstore.tiers import Scope
from coldstore.vault import MemoryVault


def export(
    store: ColdStore, uid: str, path: Path, *, snapshot_id: str | None = None, label: str | None = None, progress: Progress = silent
) -> Record:
    """A bundle at `path` with what the store has of a user: the rows of the newest snapshot that holds them, or of the one that is named,
    and the newest of the agent's own documents. Raises `NotFound` when it has neither."""
    document = _rows_of(store, uid, snapshot_id, label)
    with MemoryVault(uid, settings=store.settings) as vault:
        saved = vault.latest()
        notes = vault.restore_rows(snapshot_id=saved.id) if saved else []
    if document is None and saved is None:
        raise NotFound(f"{store.store.url} has nothing of user {uid!r}", hint=f"Take a snapshot first: `coldstore snapshot --uid {uid}`.")
    schema, omitted = _own_tables(document.schema if document else None)
    only = None if document is None or document.scope == Scope.user(uid) else Owner.of(Scope.user(uid), schema.tables)

    def rows(array: str) -> Iterable[bytes]:
        progress.start(array)
        if array == model.DOCUMENTS:
            return notes
        return (row for part in document.parts([array], only) for row in part.rows()) if document else ()

    contents = Contents(
        uid=uid,
        created_at=catalog.rfc3339(time.time_ns() // 1_000_000),
        schema=schema,
        rows=rows,
        tables=Origin(id=document.name, snapshot_at=document.snapshot_at or "") if document else None,
        documents=Origin(id=saved.id, snapshot_at=saved.created) if saved else None,
        omitted=tuple(omitted),
    )
    return write_bundle(path, contents, signer=store.signer)


def _rows_of(store: ColdStore, uid: str, snapshot_id: str | None, label: str | None) -> Document | None:
    """The newer one of everybody's snapshot and the user's own."""
    if snapshot_id is None:
        found = [catalog.newest_or_none(store.store, scope, label=label) for scope in (Scope.user(uid), Scope())]
        chosen = max(filter(None, found), key=lambda m: m.snapshot_at, default=None)
        if chosen is None:
            return None
        snapshot_id = chosen.id
    document = store.document(snapshot_id)
    if document.scope not in {Scope(), Scope.user(uid)}:
        raise NotFound(f"{snapshot_id} holds the memory of {document.scope}, not of user {uid!r}", hint="Use one of everybody's.")
    return document


def _own_tables(schema: model.Schema | None) -> tuple[model.Schema, list[str]]:
    """The tables that say whose a row is, with the sequences they draw from; and the tiers that do not."""
    if schema is None:
        return model.Schema(tables=[]), []
    own = [t for t in schema.tables if t.uid_column]
    names = {t.table for t in own}
    kept = msgspec.structs.replace(
        schema, tables=own, sequences=[s for s in schema.sequences if s.owner_table is None or s.owner_table in names], omitted=[]
    )
    return kept, sorted({*schema.omitted, *(t.tier for t in schema.tables if not t.uid_column)})


# --- in ----------------------------------------------------------------------------------------------------------------------------

_LABEL = "imported"


@dataclass(slots=True)
class Imported:
    """What an import did, or would do. `tables`: the restore's report, None where no table was carried; `documents`: names that were added
    or changed, in `snapshot_id`. `notes`: what could not be carried, and what should be looked at."""

    bundle: str
    uid: str
    was: str
    dry_run: bool
    tables: Report | None = None
    documents: list[str] = field(default_factory=list)
    snapshot_id: str | None = None
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "bundle": self.bundle,
            "uid": self.uid,
            "was": self.was,
            "dryRun": self.dry_run,
            "tables": self.tables.as_dict() if self.tables else None,
            "documents": self.documents,
            "snapshot": self.snapshot_id,
            "notes": self.notes,
        }


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """`to`: the database for the rows. `rename_uid`: whose memory it becomes; `new_ids`: with new keys, where the old owner's are taken.
    `mode` and `on_conflict` as for a restore, and documents are treated as rows are."""

    to: str | None = None
    rename_uid: str | None = None
    new_ids: bool = False
    mode: str = "fresh"
    on_conflict: str = "fail"
    allow_missing_columns: bool = False
    require_signature: bool | None = None
    dry_run: bool = False


def import_bundle(store: ColdStore, path: Path, *, options: ImportOptions | None = None, progress: Progress = silent) -> Imported:
    """A bundle into this installation. Raises a `DocumentError`, `SignatureError` or `RestoreRefused` before anything is changed."""
    options = options or ImportOptions()
    if options.mode not in MODES or options.on_conflict not in ON_CONFLICT:
        raise ConfigError(f"no such mode: {options.mode}, on conflict {options.on_conflict}", hint=f"Modes: {MODES}.")
    progress.start("check")
    bundle = open_bundle(path, uid=options.rename_uid, new_ids=options.new_ids)
    said = store.trust(require_signature=options.require_signature).check(bundle.record.signature, what=bundle.name)
    done = Imported(bundle.name, bundle.uid, bundle.record.uid, options.dry_run, notes=[*_notes(bundle), *([said] if said else [])])
    if bundle.record.tables and options.to is None:
        raise ConfigError(f"{bundle.name} holds rows, and no database is named for them", hint="Name it with --to postgresql://….")
    with MemoryVault(bundle.uid, settings=store.settings) as vault:
        there, wanted = _merged(vault, bundle, options)
        if bundle.record.tables:
            done.tables = _restore(store, bundle, options, progress)
            done.notes += done.tables.notes
        done.documents = sorted(name for name in wanted if there.get(name) != wanted[name])
        if wanted != there and not options.dry_run:
            done.snapshot_id = vault.backup_rows(wanted.values(), label=_LABEL, accept=True).id
    return done


def _notes(bundle: Bundle) -> list[str]:
    found = [f"{tier}: not in the bundle, for no column says whose a row is" for tier in bundle.record.omitted]
    if bundle.mentions:
        found.append(f"{bundle.mentions} rows speak of {bundle.record.uid!r} elsewhere than in the column of the owner; that stays")
    return found


def _restore(store: ColdStore, bundle: Bundle, options: ImportOptions, progress: Progress) -> Report:
    try:
        return store.restore(
            to=options.to or "",
            document=bundle,
            mode=options.mode,
            on_conflict=options.on_conflict,
            dry_run=options.dry_run,
            allow_missing_columns=options.allow_missing_columns,
            progress=progress,
        )
    except RestoreConflict as exc:
        if bundle.uid == bundle.record.uid or options.new_ids:
            raise
        raise RestoreConflict(str(exc), hint="--new-ids gives the copy keys of its own.") from exc


def _merged(vault: MemoryVault, bundle: Bundle, options: ImportOptions) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The rows of the agent's own documents by name: as they are, and as they are to be."""
    new = {decode_note(row)[0]: row for row in bundle.documents()}
    there = {decode_note(row)[0]: row for row in vault.restore_rows()} if vault.latest() else {}
    if not bundle.record.documents:
        return there, there
    different = sorted(name for name in there.keys() & new.keys() if there[name] != new[name])
    if options.mode == "fresh" and there:
        raise TargetNotEmpty(
            f"agent {vault.agent!r} has documents of its own already",
            hint="--mode merge adds what is missing, --mode replace takes the bundle's.",
        )
    if options.mode == "merge" and different and options.on_conflict == "fail":
        raise RestoreConflict(
            f"agent {vault.agent!r} has another document {different[0]!r}",
            hint="--on-conflict skip keeps the one that is there, --on-conflict update takes the bundle's.",
        )
    if options.mode == "replace":
        return there, new
    return there, {**there, **new} if options.on_conflict == "update" else {**new, **there}
