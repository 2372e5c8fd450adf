"""The composition root: settings in, a `ColdStore` out. Everything that a program does with coldstore goes through this class; the
command line is one such program."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Self

from coldstore import catalog, config, verify
from coldstore.catalog import SnapshotInfo
from coldstore.codec.compress import Codec
from coldstore.config import Settings
from coldstore.document import model
from coldstore.documents import Document, StoredDocument, open_file
from coldstore.errors import ColdStoreError, ConfigError, NotFound
from coldstore.export import ExportOptions, snapshot, snapshot_each_user
from coldstore.postgres.connect import connect
from coldstore.postgres.migrate import install_reference_schema, migrate
from coldstore.postgres.source import Source
from coldstore.postgres.table_plan import Mode
from coldstore.progress import Progress, silent
from coldstore.restore import Report, RestoreOptions, restore
from coldstore.storage.open import open_store
from coldstore.storage.store import Store
from coldstore.tiers import EVERYBODY, Scope

MODES = ("fresh", "replace", "merge")
ON_CONFLICT = ("fail", "skip", "update")


def scope(*, uid: str | None = None, workspace: str | None = None) -> Scope:
    """One user's, one workspace's or everybody's memory."""
    if uid is not None and workspace is not None:
        raise ConfigError("a snapshot is of one user or of one workspace, not of both")
    return Scope.of(uid=uid, workspace=workspace)


class ColdStore:
    """A source database and a store, as configured. Use it as a context manager, or `close` it.

        with ColdStore() as store:                      # environment and coldstore.toml, as the command line
            info = store.snapshot(uid="uid_alice")
            store.restore(info.id, to="postgresql://localhost/elsewhere")

    Connections are opened when they are first needed and kept.
    """

    def __init__(self, settings: Settings | None = None, *, database_url: str | None = None, url: str | None = None) -> None:
        self.settings = settings or config.load(flags={"database_url": database_url, "url": url})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for name in ("source", "store"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()

    @cached_property
    def store(self) -> Store:
        s = self.settings
        return open_store(
            s.store_url(),
            region=s.region,
            endpoint_url=s.endpoint_url,
            path_style=s.path_style,
            checksums=s.checksums,
            options=s.options,
        )

    @cached_property
    def source(self) -> Source:
        return Source(self.settings.require_database())

    # --- out -------------------------------------------------------------------------------------------------------------------

    def snapshot(
        self,
        *,
        uid: str | None = None,
        workspace: str | None = None,
        label: str | None = None,
        allow_empty: bool = False,
        progress: Progress = silent,
    ) -> SnapshotInfo:
        """One snapshot: of a user, of a workspace, or of everybody. Raises `NotFound` for somebody of whom there is nothing."""
        manifest = snapshot(
            self.source,
            self.store,
            tiers=self.settings.enabled_tiers(),
            scope=scope(uid=uid, workspace=workspace),
            label=label,
            options=self._export_options(allow_empty=allow_empty),
            progress=progress,
        )
        return SnapshotInfo.of(manifest)

    def snapshot_each_user(self, *, label: str | None = None, progress: Progress = silent) -> Iterator[SnapshotInfo]:
        """One snapshot for every user there is, all of one moment. They are written as the iterator is consumed."""
        manifests = snapshot_each_user(
            self.source,
            self.store,
            tiers=self.settings.enabled_tiers(),
            label=label,
            options=self._export_options(),
            progress=progress,
        )
        return (SnapshotInfo.of(m) for m in manifests)

    def _export_options(self, *, allow_empty: bool = False) -> ExportOptions:
        s = self.settings
        return ExportOptions(
            codec=Codec(s.compression, s.compression_level),
            vectors=s.vectors,
            readers=s.readers,
            writers=s.writers,
            frame_size=s.frame_mb << 20,
            allow_empty=allow_empty,
        )

    # --- what there is ---------------------------------------------------------------------------------------------------------

    def list_snapshots(
        self,
        *,
        uid: str | None = None,
        workspace: str | None = None,
        everybody: bool = False,
        date: str | None = None,
        label: str | None = None,
        kind: str | None = None,
        limit: int | None = None,
    ) -> Iterator[SnapshotInfo | ColdStoreError]:
        """Newest first. `everybody`: only all-user snapshots. One whose manifest is damaged stands there as its error."""
        wanted = EVERYBODY if everybody else scope(uid=uid, workspace=workspace)
        only = wanted if everybody or wanted != EVERYBODY else None
        for found in catalog.manifests(self.store, scope=only, date=date, label=label, kind=kind, limit=limit):
            yield found if isinstance(found, ColdStoreError) else SnapshotInfo.of(found)

    def manifest(self, snapshot_id: str) -> model.Manifest:
        return catalog.read_manifest(self.store, snapshot_id)

    def latest(self, *, uid: str | None = None, workspace: str | None = None, label: str | None = None) -> SnapshotInfo:
        """The newest snapshot of the scope. Raises `NotFound`."""
        return SnapshotInfo.of(catalog.newest(self.store, scope(uid=uid, workspace=workspace), label=label))

    def document(
        self,
        snapshot_id: str | None = None,
        *,
        file: str | Path | None = None,
        label: str | None = None,
        uid: str | None = None,
        workspace: str | None = None,
    ) -> Document:
        """The document to read: a file, a snapshot by its id, or the newest all-user one (labelled, if asked). When there is no all-user
        snapshot, the newest one of the user or workspace serves."""
        if file is not None:
            return open_file(Path(file))
        if snapshot_id is not None:
            return StoredDocument(self.store, self.manifest(snapshot_id))
        try:
            return StoredDocument(self.store, catalog.newest(self.store, EVERYBODY, label=label))
        except NotFound:
            own = scope(uid=uid, workspace=workspace)
            if own == EVERYBODY:
                raise
            return StoredDocument(self.store, catalog.newest(self.store, own, label=label))

    # --- back ------------------------------------------------------------------------------------------------------------------

    def restore(
        self,
        snapshot_id: str | None = None,
        *,
        to: str,
        file: str | Path | None = None,
        label: str | None = None,
        uid: str | None = None,
        workspace: str | None = None,
        mode: str = "fresh",
        on_conflict: str = "fail",
        dry_run: bool = False,
        tiers: Iterable[str] = (),
        allow_missing_columns: bool = False,
        progress: Progress = silent,
    ) -> Report:
        """Bring a snapshot back into the database at the URL `to`; with `uid` or `workspace`, only their part. Without an id, a file or a
        label it is the newest all-user snapshot. Raises `RestoreRefused` or `DocumentError`, the target being untouched."""
        if mode not in MODES or on_conflict not in ON_CONFLICT:
            raise ConfigError(f"no such mode: {mode}, on conflict {on_conflict}", hint=f"Modes: {MODES}; on conflict: {ON_CONFLICT}.")
        wanted = scope(uid=uid, workspace=workspace)
        return restore(
            self.document(snapshot_id, file=file, label=label, uid=uid, workspace=workspace),
            to,
            scope=wanted,
            tiers=self.settings.all_tiers(),
            options=RestoreOptions(
                mode=Mode(mode, on_conflict),
                jobs=self.settings.jobs,
                dry_run=dry_run,
                allow_missing_columns=allow_missing_columns,
                tiers=tuple(tiers),
                maintenance_work_mem=self.settings.maintenance_work_mem,
            ),
            progress=progress,
        )

    def verify(self, snapshot_id: str | None = None, *, deep: bool = False, progress: Progress = silent) -> Iterator[verify.Verdict]:
        """A verdict for one snapshot, or for every one in the store."""
        found: Iterable[model.Manifest | ColdStoreError]
        found = [self.manifest(snapshot_id)] if snapshot_id else catalog.manifests(self.store)
        return verify.verify(self.store, found, deep=deep, progress=progress)

    def orphans(self) -> list[str]:
        """Keys below `snapshots/` that belong to no snapshot: what a crash between document and manifest leaves, and strangers' objects."""
        return verify.orphans(self.store, (key.id for key in catalog.keys(self.store)))

    # --- set up ----------------------------------------------------------------------------------------------------------------

    def init(self, *, reference_schema: bool = False) -> list[int]:
        """Bring coldstore's own tables in the source database up to date; returns the migrations applied. `reference_schema`: also make
        the memory tables, for those who have none."""
        conn = connect(self.settings.require_database(), purpose="coldstore init")
        try:
            applied = migrate(conn)
            if reference_schema:
                install_reference_schema(conn)
            return applied
        finally:
            conn.close()
