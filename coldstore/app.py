"""The composition root: settings in, a `ColdStore` out. Everything that a program does with coldstore goes through this class; the
command line is one such program."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from coldstore import catalog, config, means
from coldstore.catalog import SnapshotInfo
from coldstore.codec.compress import Codec
from coldstore.codec.sign import SigningKey
from coldstore.config import Settings
from coldstore.document import model
from coldstore.errors import (
    ChainBroken,
    ChainRefused,
    ColdStoreError,
    ConfigError,
    NotFound,
    PruneIncomplete,
    RestoreRefused,
    SuspectSnapshot,
    VerifyFailed,
)
from coldstore.export import ExportOptions, snapshot, snapshot_each_user
from coldstore.incremental import snapshot_incremental
from coldstore.keyrings.ring import KeyRing
from coldstore.postgres import capture
from coldstore.postgres.connect import connect, describe
from coldstore.postgres.migrate import install_reference_schema, migrate, set_schedule_trigger
from coldstore.postgres.runs import Kind, RunHandle, RunLog, Trigger, sentence
from coldstore.postgres.source import Source
from coldstore.progress import Progress, silent
from coldstore.recorded import recorded
from coldstore.storage import layout
from coldstore.storage.store import Store
from coldstore.tiers import EVERYBODY, Scope
from coldstore.trust import Trust

if TYPE_CHECKING:  # a snapshot need not wait for what the other methods import when they are called: `LATER`
    from coldstore.chained import ChainDocument
    from coldstore.comparison import Difference
    from coldstore.doctor import Findings
    from coldstore.documents import Document, StoredDocument
    from coldstore.drill import Report as Proof
    from coldstore.history import History
    from coldstore.lifecycle import Rules
    from coldstore.pointers import Wrong
    from coldstore.prune import Report as Pruned
    from coldstore.restore import Report
    from coldstore.retention import Policy
    from coldstore.status import Status
    from coldstore.verify import Verdict

#: The modules of this package that methods import when they are called.
LATER = (
    *("chain", "chained", "compact", "comparison", "doctor", "documents", "drill", "history", "lifecycle", "pointers", "prune"),
    *("restore", "retention", "status", "verify"),
    *("postgres.assertion", "postgres.table_plan"),
)


def import_all() -> None:
    """Import now what methods would import when they are called. For a process that stays: it shall not meet the modules of another version
    that was installed meanwhile."""
    for name in LATER:
        import_module(f"coldstore.{name}")


def moment_of(text: str) -> int:
    """Milliseconds since the epoch of a moment as people write it. Raises `ConfigError` for one without an offset: it would be another
    moment for whoever sits elsewhere."""
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ConfigError(f"{text!r} is not a moment", hint="Write it as 2026-03-05T14:30:00+07:00, or with Z for UTC.") from None
    if found.tzinfo is None:
        raise ConfigError(f"{text!r} does not say in which time zone", hint=f"Write {text.strip()}Z for UTC, or with its offset: …+07:00.")
    return (found - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1)


MODES = ("fresh", "replace", "merge")
ON_CONFLICT = ("fail", "skip", "update")
_TOLD = 20  # users whose errors the list of runs remembers


def scope(*, uid: str | None = None, workspace: str | None = None) -> Scope:
    """One user's, one workspace's or everybody's memory."""
    if uid is not None and workspace is not None:
        raise ConfigError("a snapshot is of one user or of one workspace, not of both")
    return Scope.of(uid=uid, workspace=workspace)


def _look_first(found: Sequence[SnapshotInfo]) -> None:
    """Raise when any is suspect."""
    suspects = [info for info in found if info.suspect]
    if suspects:
        first = suspects[0]
        others = f", and {len(suspects) - 1} more" if len(suspects) > 1 else ""
        raise SuspectSnapshot(
            f"{first.id} is stored, but looks wrong: {first.suspect}{others}",
            key=first.path,
            hint="Is it the right database? `latest` still names the one before. If it is right, take it again with --accept.",
        )


def _written(run: RunHandle, manifest: model.Manifest) -> SnapshotInfo:
    """Raises when it is suspect."""
    info = SnapshotInfo.of(manifest)
    run.succeeded(snapshot_id=info.id, rows=sum(info.rows.values()), bytes=info.bytes)
    _look_first([info])
    return info


def _raise_first(failures: Mapping[str, ColdStoreError]) -> None:
    """Raise for those whose snapshot could not be written: the first one's kind of error, with how many there are."""
    for uid, error in failures.items():
        told = f"{len(failures)} users have no new snapshot; the first of them is {uid!r}: {error}"
        raise type(error)(told, hint=error.hint, op=error.op, key=error.key)


class ColdStore:
    """A source database and a store, as configured. Use it as a context manager, or `close` it.

        with ColdStore() as store:                      # environment and coldstore.toml, as the command line
            info = store.snapshot(uid="uid_alice")
            store.restore(info.id, to="postgresql://localhost/elsewhere")

    Connections are opened when they are first needed and kept.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        database_url: str | None = None,
        url: str | None = None,
        trigger: Trigger = "api",
    ) -> None:
        """`trigger`: what the list of runs says of who asked."""
        self.settings = settings or config.load(flags={"database_url": database_url, "url": url})
        self.trigger: Trigger = trigger

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for name in ("source", "store", "runs"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()

    @cached_property
    def store(self) -> Store:
        return self._open_store(path_style=self.settings.path_style, options=self.settings.options)

    def styled_store(self, path_style: bool) -> Store:
        """The same bucket, with its name in the path or in the host's name. It asks once and does not insist."""
        return self._open_store(path_style=path_style, options={**self.settings.options, "attempts": 1})

    def _open_store(self, *, path_style: bool | None, options: Mapping[str, object]) -> Store:
        return means.open_store(self.settings, path_style=path_style, options=options)

    @cached_property
    def source(self) -> Source:
        return Source(self.settings.require_database())

    @cached_property
    def runs(self) -> RunLog:
        """The list of runs. Inside the block of one that is begun here, what this object does is that run."""
        s = self.settings
        return RunLog(s.runs_url.get_secret_value() if s.runs_url else s.require_database(), timeout=s.runs_timeout)

    @property
    def knows_runs(self) -> bool:
        """Whether there may be a list of runs."""
        s = self.settings
        return s.runs_log == "required" or (s.runs_log == "auto" and bool(s.runs_url or s.database_url))

    @contextmanager
    def as_run(self, kind: Kind, of: Scope, progress: Progress = silent, *, run_id: str, details: Mapping[str, Any]) -> Iterator[RunHandle]:
        """What this object does inside the block, in the same thread, is one run, under an id that is known before it begins."""
        with self._recorded(kind, of, progress, run_id, **details) as run, run:
            yield run

    def _recorded(
        self, kind: Kind, of: Scope, progress: Progress = silent, run_id: str | None = None, /, **details: object
    ) -> AbstractContextManager[RunHandle]:
        s = self.settings
        return recorded(
            self.runs if self.knows_runs else None,
            kind,
            trigger=self.trigger,
            scope=of,
            progress=progress,
            required=s.runs_log == "required",
            apart=s.runs_url is not None,
            run_id=run_id,
            details={name: value for name, value in details.items() if value},
        )

    @cached_property
    def rings(self) -> tuple[KeyRing, ...]:
        """Who can open what is sealed."""
        return means.open_rings(self.settings)

    @cached_property
    def signer(self) -> SigningKey | None:
        """Who signs new snapshots."""
        return means.open_signer(self.settings)

    def trust(self, *, require_signature: bool | None = None) -> Trust:
        """Whose signature counts: one's own and those of `trusted_keys`."""
        return means.trust_of(self.settings, self.signer, required=require_signature)

    # --- out -------------------------------------------------------------------------------------------------------------------

    def snapshot(
        self,
        *,
        uid: str | None = None,
        workspace: str | None = None,
        label: str | None = None,
        allow_empty: bool = False,
        accept: bool = False,
        progress: Progress = silent,
    ) -> SnapshotInfo:
        """One snapshot: of a user, of a workspace, or of everybody. Raises `NotFound` for somebody of whom there is nothing, and
        `SuspectSnapshot`, when it is stored, for one with far less in it than the one before; with `accept` that is no matter."""
        wanted = scope(uid=uid, workspace=workspace)
        options = self._export_options(allow_empty=allow_empty, accept=accept)
        with self._recorded("snapshot", wanted, progress, label=label) as run:
            return _written(run, self._full(wanted, label, options, progress))

    def _full(self, wanted: Scope, label: str | None, options: ExportOptions, progress: Progress) -> model.Manifest:
        tiers = self.settings.enabled_tiers()
        return snapshot(self.source, self.store, tiers=tiers, scope=wanted, label=label, options=options, progress=progress)

    def snapshot_incremental(
        self,
        *,
        uid: str | None = None,
        workspace: str | None = None,
        label: str | None = None,
        auto_full: bool = False,
        even_if_empty: bool = False,
        prove: bool = False,
        allow_empty: bool = False,
        accept: bool = False,
        progress: Progress = silent,
    ) -> SnapshotInfo | None:
        """What changed since the newest snapshot of a user, of a workspace, or of everybody. None when nothing did and nothing was written,
        unless `even_if_empty`. Raises `ChainRefused` where there is nothing that it could build on; with `auto_full` a full snapshot is
        taken then, which `allow_empty` is for. `prove`: also of everybody count and claim what the chain comes to; it reads everything."""
        wanted = scope(uid=uid, workspace=workspace)
        options = self._export_options(allow_empty=allow_empty, accept=accept)
        with self._recorded("snapshot", wanted, progress, label=label, incremental=True) as run:
            try:
                manifest = snapshot_incremental(
                    self.source,
                    self.store,
                    tiers=self.settings.enabled_tiers(),
                    scope=wanted,
                    label=label,
                    even_if_empty=even_if_empty,
                    prove=prove,
                    options=options,
                    progress=progress,
                )
            except ChainRefused as exc:
                if not auto_full:
                    raise
                progress.note(f"a full snapshot is taken: {exc}")
                run.details["full"] = str(exc)
                manifest = self._full(wanted, label, options, progress)
            if manifest is None:
                run.succeeded(rows=0, bytes=0, details={"unchanged": True})
                return None
            return _written(run, manifest)

    def snapshot_each_user(self, *, label: str | None = None, accept: bool = False, progress: Progress = silent) -> Iterator[SnapshotInfo]:
        """One snapshot for every user there is, all of one moment. They are written as the iterator is consumed. When all are written that
        can be, raises what kept the others from it, else `SuspectSnapshot`."""
        with self._recorded("snapshot", EVERYBODY, progress, label=label, each="user") as run:
            failures: dict[str, ColdStoreError] = {}

            def failed(uid: str, error: ColdStoreError) -> None:
                failures[uid] = error
                told = {name: sentence(failures[name]) for name in islice(failures, _TOLD)}
                run.details.update(failed=len(failures), errors=told)

            manifests = snapshot_each_user(
                self.source,
                self.store,
                tiers=self.settings.enabled_tiers(),
                label=label,
                options=self._export_options(accept=accept),
                failed=failed,
                progress=progress,
            )
            suspects = []
            rows = size = 0
            for users, manifest in enumerate(manifests, 1):
                info = SnapshotInfo.of(manifest)
                suspects += [info] if info.suspect else []
                rows, size = rows + sum(info.rows.values()), size + info.bytes
                run.succeeded(rows=rows, bytes=size, details={"users": users, "suspects": {i.uid: i.suspect for i in suspects}})
                yield info
            _raise_first(failures)
            _look_first(suspects)

    def _export_options(self, *, allow_empty: bool = False, accept: bool = False) -> ExportOptions:
        s = self.settings
        return ExportOptions(
            codec=Codec(s.compression, s.compression_level),
            vectors=s.vectors,
            readers=s.readers,
            writers=s.writers,
            frame_size=s.frame_mb << 20,
            allow_empty=allow_empty,
            rings=self.rings if s.seal else (),
            signer=self.signer,
            retain_days=s.retain_days,
            retain_mode=s.retain_mode,
            max_fall=s.max_fall,
            accept=accept,
            keep_days=s.incremental_keep_days,
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
        before: str | None = None,
        limit: int | None = None,
    ) -> Iterator[SnapshotInfo | ColdStoreError]:
        """Newest first. `everybody`: only all-user snapshots. `before`: the id where the page before this one ended. One whose manifest is
        damaged stands there as its error."""
        wanted = EVERYBODY if everybody else scope(uid=uid, workspace=workspace)
        only = wanted if everybody or wanted != EVERYBODY else None
        drills = catalog.drills(self.store)
        for found in catalog.manifests(self.store, scope=only, date=date, before=before, label=label, kind=kind, limit=limit):
            yield found if isinstance(found, ColdStoreError) else SnapshotInfo.of(found, drills.get(found.id, ()))

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
        at: str | None = None,
        uid: str | None = None,
        workspace: str | None = None,
        require_signature: bool | None = None,
    ) -> Document:
        """The document to read: a file, a snapshot by its id, or the newest all-user one (labelled, if asked). When there is no all-user
        snapshot, the newest one of the user or workspace serves. `at`: the snapshot nearest to that moment and not after it, of everybody
        or the user's own, whichever is nearer. An incremental comes with all it is built on. Raises a `SignatureError` where one is
        required, a `KeyRingError` when it is sealed and no key ring opens it, `ChainBroken` where a part of it is gone."""
        from coldstore.documents import StoredDocument, open_file

        trust = self.trust(require_signature=require_signature)
        if file is not None:
            document = open_file(Path(file), rings=self.rings)
            if trust.required or isinstance(document, StoredDocument):
                signature = document.manifest.signature if isinstance(document, StoredDocument) else None
                trust.check(signature, what=document.name)
            return document
        own = scope(uid=uid, workspace=workspace)
        manifest = self._manifest(snapshot_id, label=label, own=own) if at is None else self._nearest(moment_of(at), own)
        return self.whole_document(manifest, trust)

    def whole_document(self, manifest: model.Manifest, trust: Trust | None = None) -> StoredDocument | ChainDocument:
        """One snapshot with all it is built on. Raises as `document` does."""
        from coldstore.chained import open_whole

        return open_whole(self.store, manifest, rings=self.rings, trust=trust or self.trust())

    def stored_document(self, snapshot_id: str, *, require_signature: bool | None = None) -> StoredDocument:
        """The document of one snapshot of the store. Raises as `document` does."""
        return self._opened(self.manifest(snapshot_id), self.trust(require_signature=require_signature))

    def _opened(self, manifest: model.Manifest, trust: Trust) -> StoredDocument:
        from coldstore.documents import open_stored

        trust.check(manifest.signature, what=manifest.id)
        return open_stored(self.store, manifest, rings=self.rings)

    def _manifest(self, snapshot_id: str | None, *, label: str | None, own: Scope) -> model.Manifest:
        if snapshot_id is not None:
            return self.manifest(snapshot_id)
        try:
            return catalog.newest(self.store, EVERYBODY, label=label)
        except NotFound:
            if own == EVERYBODY:
                raise
            return catalog.newest(self.store, own, label=label)

    def _nearest(self, moment: int, own: Scope) -> model.Manifest:
        """Of everybody's snapshots and the owner's own. A broken chain is never passed over for one that reaches less far."""
        from coldstore.chained import nearest

        if moment > time.time_ns() // 1_000_000:
            raise ConfigError(f"{catalog.rfc3339(moment)} is yet to come", hint="--latest takes the newest snapshot.")
        if own == EVERYBODY:
            return nearest(self.store, EVERYBODY, moment)
        found: list[model.Manifest] = []
        missing: list[NotFound] = []
        for each in (EVERYBODY, own):
            try:
                found.append(nearest(self.store, each, moment))
            except NotFound as exc:
                missing.append(exc)
        if not found:
            raise missing[0]
        return max(found, key=lambda m: layout.parse_id(m.id)[1])

    # --- back ------------------------------------------------------------------------------------------------------------------

    def restore(
        self,
        snapshot_id: str | None = None,
        *,
        to: str,
        file: str | Path | None = None,
        document: Document | None = None,
        label: str | None = None,
        at: str | None = None,
        uid: str | None = None,
        workspace: str | None = None,
        mode: str = "fresh",
        on_conflict: str = "fail",
        dry_run: bool = False,
        preview: int | None = 20,
        tiers: Iterable[str] = (),
        allow_missing_columns: bool = False,
        require_signature: bool | None = None,
        progress: Progress = silent,
    ) -> Report:
        """Bring a snapshot back into the database at the URL `to`; with `uid` or `workspace`, only their part. Without an id, a file or a
        label it is the newest all-user snapshot; with `at`, RFC 3339 with its offset, the one nearest to that moment and not after it;
        `document` is one that was opened, and trusted, already. Raises `RestoreRefused`,
        `DocumentError`, `KeyRingError` or `SignatureError`, the target being untouched."""
        from coldstore.chained import ChainDocument
        from coldstore.documents import StoredDocument
        from coldstore.postgres.table_plan import Mode
        from coldstore.restore import RestoreOptions, restore

        if mode not in MODES or on_conflict not in ON_CONFLICT:
            raise ConfigError(f"no such mode: {mode}, on conflict {on_conflict}", hint=f"Modes: {MODES}; on conflict: {ON_CONFLICT}.")
        wanted = scope(uid=uid, workspace=workspace)
        with self._recorded("restore", wanted, progress, target=describe(to), mode=mode, dryRun=dry_run) as run:
            run.snapshot_id = snapshot_id
            found = document or self.document(
                snapshot_id, file=file, label=label, at=at, uid=uid, workspace=workspace, require_signature=require_signature
            )
            run.details["document"] = found.name
            report = restore(
                found,
                to,
                scope=wanted,
                tiers=self.settings.all_tiers(),
                options=RestoreOptions(
                    mode=Mode(mode, on_conflict),
                    jobs=self.settings.jobs,
                    dry_run=dry_run,
                    preview=preview,
                    allow_missing_columns=allow_missing_columns,
                    tiers=tuple(tiers),
                    maintenance_work_mem=self.settings.maintenance_work_mem,
                ),
                progress=progress,
            )
            restored = None if dry_run else sum(t["rows"] for t in report.tables)
            run.succeeded(snapshot_id=None if file or document else found.name, rows=restored, details={"verified": report.verified})
        signature = found.manifest.signature if isinstance(found, StoredDocument | ChainDocument) else None
        if document is None and (note := self.trust(require_signature=False).check(signature, what=found.name)):
            report.notes.insert(0, note)
        return report

    # --- compare ---------------------------------------------------------------------------------------------------------------

    def diff(
        self,
        before: str,
        after: str,
        *,
        uid: str | None = None,
        workspace: str | None = None,
        tiers: Collection[str] = (),
        limit: int | None = 20,
        require_signature: bool | None = None,
        progress: Progress = silent,
    ) -> Difference:
        """What it takes from `before` to `after`. Each is a snapshot's id, `latest`, a moment with its offset, or `live`, the source
        database as it is now. `limit`: rows shown of each kind of each tier, None for all. Raises as `document` does, and a
        `DatabaseError`."""
        from coldstore.comparison import LIVE, between

        def named(name: str) -> Document | None:
            return None if name == LIVE else self._named(name, uid=uid, workspace=workspace, require_signature=require_signature)

        return between(
            named(before),
            named(after),
            database=self.settings.require_database,
            scope=scope(uid=uid, workspace=workspace),
            only=tiers,
            limit=limit,
            progress=progress,
        )

    def _named(self, name: str, **whose: Any) -> Document:
        """A document as people name it."""
        if name == "latest":
            return self.document(**whose)
        if name.startswith("memory-"):
            return self.document(name, **whose)
        if not name[:1].isdigit():
            raise ConfigError(
                f"{name!r} is neither a snapshot's id nor a moment",
                hint="Besides there are `latest` and `live`. A moment has its offset: 2026-03-05T14:30:00+07:00.",
            )
        return self.document(at=name, **whose)

    def history(
        self,
        *,
        tier: str,
        key: str | Sequence[str],
        uid: str | None = None,
        since: str | None = None,
        until: str | None = None,
        require_signature: bool | None = None,
    ) -> History:
        """Every version of one memory that the snapshots of the user and of everybody hold, newest first. `key`: the primary key's value;
        of several columns each as `column=value`. `since`, `until`: UTC days. Raises `NotFound` when none holds it."""
        from coldstore.history import Wanted, history

        trust = self.trust(require_signature=require_signature)
        wanted = Wanted(scope(uid=uid), tier, [key] if isinstance(key, str) else list(key))

        return history(self.store, wanted, opened=lambda manifest: self._opened(manifest, trust), since=since, until=until)

    # --- proof -----------------------------------------------------------------------------------------------------------------

    def verify(
        self,
        snapshot_id: str | None = None,
        *,
        since: str | None = None,
        deep: bool = False,
        sample: float = 0.0,
        seed: int = 0,
        require_signature: bool | None = None,
        progress: Progress = silent,
    ) -> list[Verdict]:
        """A verdict for one snapshot and all it is built on, for those since a UTC day, or for every one in the store. `sample`: the share
        of the frames to read, chosen by `seed`."""
        from coldstore.verify import Checks, verify

        with self._recorded("verify", EVERYBODY, progress, deep=deep, sample=sample, since=since) as run:
            run.snapshot_id = snapshot_id
            checks = Checks(deep, sample, seed, self.rings, self.trust(require_signature=require_signature))
            found: Iterable[model.Manifest | ColdStoreError]
            found = self._links(self.manifest(snapshot_id)) if snapshot_id else catalog.manifests(self.store, since=since)
            verdicts = verify(self.store, found, checks=checks, whole=snapshot_id is None and since is None, progress=progress)
            states = Counter(v.state for v in verdicts)
            run.succeeded(rows=sum(v.rows for v in verdicts), bytes=sum(v.bytes for v in verdicts), details={"states": states})
            if bad := len(verdicts) - states["ok"]:
                run.failed(VerifyFailed(f"{bad} of {len(verdicts)} snapshots are not good"))
        return verdicts

    def _links(self, manifest: model.Manifest) -> list[model.Manifest]:
        """Newest first; of a chain with a hole only itself, whose verdict says so."""
        from coldstore.chained import links_of

        try:
            return links_of(self.store, manifest)[::-1]
        except ChainBroken:
            return [manifest]

    def drill(self, snapshot_id: str | None = None, *, to: str | None = None, keep: bool = False, progress: Progress = silent) -> Proof:
        """Restore a snapshot, or the newest all-user one, into a database that is thrown away, try everything there, and record the
        outcome in the store. `to`: a server on which the database is made, instead of an embedded one. `keep` it afterwards."""
        from coldstore.documents import StoredDocument
        from coldstore.drill import DrillOptions, drill
        from coldstore.postgres.assertion import Assertion
        from coldstore.restore import RestoreOptions

        s = self.settings
        options = DrillOptions(
            to=to,
            keep=keep,
            restore=RestoreOptions(jobs=s.jobs, maintenance_work_mem=s.maintenance_work_mem),
            assertions=tuple(Assertion(a.name, a.sql) for a in s.assertions),
            timeout=s.assertion_timeout,
            signer=self.signer,
        )
        with self._recorded("drill", EVERYBODY, progress) as run:
            run.snapshot_id = snapshot_id
            document = self.document(snapshot_id)
            if isinstance(document, StoredDocument) and document.manifest.kind == model.DOCUMENTS:
                raise RestoreRefused(
                    f"{document.name} holds an agent's own documents, which no database has a table for",
                    hint=f"`coldstore verify {document.name} --deep` reads every byte of them.",
                )
            report = drill(document, self.store, options=options, progress=progress)
            run.succeeded(snapshot_id=report.id, details={"proven": report.proven})
            if not report.proven:
                run.failed(VerifyFailed(f"not proven: {', '.join(c.name for c in report.checks if not c.ok) or 'nothing was tried'}"))
        return report

    def rewrap(self, snapshot_id: str | None = None) -> list[str]:
        """Wrap the data key of one sealed snapshot, or of every one, for the key rings that are configured now; documents stay as they are.
        Returns the ids of those that were lacking a form."""
        from coldstore.documents import rewrap

        found = [self.manifest(snapshot_id)] if snapshot_id else catalog.manifests(self.store)
        done = []
        for manifest in found:
            if isinstance(manifest, ColdStoreError):
                raise manifest
            if rewrap(self.store, manifest, rings=self.rings, signer=self.signer):
                done.append(manifest.id)
        return done

    def delete(self, snapshot_ids: Iterable[str], *, cascade: bool = False, now: int | None = None) -> list[str]:
        """Delete snapshots, and leave a record of it. Raises `ObjectLocked` before anything is done if one must be kept, and `ChainRefused`
        if one is left that is built on them; with `cascade` that one goes too. `now`: milliseconds since the epoch, for those who have
        another clock."""
        wanted = list(dict.fromkeys(snapshot_ids))
        with self._recorded("delete", EVERYBODY, snapshots=wanted) as run:
            run.snapshot_id = wanted[0] if len(wanted) == 1 else None
            found = [self.manifest(snapshot) for snapshot in wanted]
            needing = self.built_on(found)
            if needing and not cascade:
                raise ChainRefused(
                    f"{len(needing)} snapshots are built on what would be deleted, {needing[-1].id} for one",
                    hint="Nothing was done. --cascade deletes them too; `coldstore compact` makes a full snapshot of a chain first.",
                )
            found = sorted([*needing, *found], key=lambda m: layout.parse_id(m.id)[1], reverse=True)
            catalog.delete(self.store, found, now=time.time_ns() // 1_000_000 if now is None else now, signer=self.signer)
        return [m.id for m in found]

    def built_on(self, found: Sequence[model.Manifest]) -> list[model.Manifest]:
        """The snapshots of the store that need one of these and are none of them, newest first."""
        from coldstore.chain import Step, built_on

        needing: list[model.Manifest] = []
        for each in {catalog.scope_of(m) for m in found}:
            ids = [m.id for m in found if catalog.scope_of(m) == each and m.kind != model.DOCUMENTS]
            first = min((layout.parse_id(i)[1] for i in ids), default=None)
            if first is not None:
                listed = catalog.manifests(self.store, scope=each, since=layout.date_of(first))
                there = {m.id: m for m in listed if isinstance(m, model.Manifest)}
                needing += [there[step.id] for step in built_on(map(Step.of, there.values()), ids)]
        return needing

    def compact(self, snapshot_id: str, *, label: str | None = None, progress: Progress = silent) -> SnapshotInfo:
        """A new full snapshot of what an incremental one comes to with all it is built on; the database is not asked. Raises `ChainRefused`
        for one that is not incremental, or is suspect, or whose keys only PostgreSQL can tell apart."""
        from coldstore.chained import ChainDocument
        from coldstore.compact import compact

        with self._recorded("snapshot", EVERYBODY, progress, label=label, builtFrom=snapshot_id) as run:
            document = self.document(snapshot_id)
            if not isinstance(document, ChainDocument):
                raise ChainRefused(f"{snapshot_id} is no incremental snapshot", hint="It is whole by itself.")
            info = SnapshotInfo.of(compact(self.store, document, label=label, options=self._export_options(), progress=progress))
            run.succeeded(snapshot_id=info.id, rows=sum(info.rows.values()), bytes=info.bytes)
        return info

    def policy(self, **given: int | bool | str | None) -> Policy:
        """The retention policy of the settings; with rules `given` (`last=3`, `preset="pro"`), theirs. Raises `ConfigError` for one that
        keeps nothing."""
        from coldstore.retention import policy_of

        return policy_of(self.settings.retention(), **given)

    def prune(
        self,
        policy: Policy | None = None,
        *,
        uid: str | None = None,
        workspace: str | None = None,
        everybody: bool = False,
        dry_run: bool = True,
        now: int | None = None,
        progress: Progress = silent,
    ) -> Pruned:
        """Decide what the policy keeps, and unless it is a `dry_run` delete the rest and what dead processes left behind. `everybody`: only
        all-user snapshots. Deletions that failed stand in the report."""
        from coldstore.prune import prune

        wanted = EVERYBODY if everybody else scope(uid=uid, workspace=workspace)
        policy = policy or self.policy()
        with self._recorded("prune", wanted, progress, dryRun=dry_run) as run:
            report = prune(
                self.store,
                policy,
                now=time.time_ns() // 1_000_000 if now is None else now,
                scope=wanted if everybody or wanted != EVERYBODY else None,
                grace_hours=self.settings.grace_hours,
                dry_run=dry_run,
                signer=self.signer,
                trust=self.trust(),
                progress=progress,
            )
            run.succeeded(details={"deleted": len(report.deleted), "swept": len(report.swept), "failed": len(report.failures)})
            if not report.ok:
                run.failed(PruneIncomplete(f"{len(report.failures)} deletions failed"))
        return report

    def check_pointers(self) -> tuple[int, list[Wrong]]:
        """(how many pointers there should be, those that do not lead where they should)."""
        from coldstore.pointers import check

        return check(self.store)

    def rebuild_pointers(self) -> list[Wrong]:
        """Put right the pointers that are wrong; returns what was."""
        from coldstore.pointers import rebuild

        return rebuild(self.store)

    def lifecycle(self, kind: str | None = None, *, expire: bool = False) -> Rules:
        """The bucket's rules for `kind`, `s3` or `gcs`; by default for where the store is."""
        from coldstore.lifecycle import rules

        return rules(self.settings.store_url(), kind, policy=self.policy() if expire else None)

    def orphans(self) -> list[str]:
        """Keys below `snapshots/` that belong to no snapshot: what a crash between document and manifest leaves, and strangers' objects."""
        from coldstore.verify import orphans

        return orphans(self.store, (key.id for key in catalog.keys(self.store)))

    # --- a look at all of it ---------------------------------------------------------------------------------------------------

    def doctor(self, *, database: bool = True, store: bool = True, progress: Progress = silent) -> Findings:
        """Find out whether settings, keys, database and store keep what is relied on. The database is only read; into the store some
        objects are written and removed again."""
        from coldstore.doctor import examine

        return examine(self, database=database, store=store, progress=progress)

    def status(self, *, now: int | None = None, progress: Progress = silent) -> Status:
        """What the store holds, how it grows and what it costs. `now`: milliseconds since the epoch, as for `delete`."""
        from coldstore.status import Prices, gather

        s = self.settings
        return gather(
            self.store,
            now=time.time_ns() // 1_000_000 if now is None else now,
            prices=Prices(s.price_gb_month, s.price_1k_put, s.price_1k_get),
            part_size=getattr(self.store, "part_size", None),
            progress=progress,
        )

    # --- set up ----------------------------------------------------------------------------------------------------------------

    def init(
        self, *, reference_schema: bool = False, schedule_trigger: bool | None = None, change_capture: bool | None = None
    ) -> list[int]:
        """Bring coldstore's own tables in the source database up to date; returns the migrations applied. `reference_schema`: also make
        the memory tables, for those who have none. `schedule_trigger`: also make, or remove, what wakes a scheduler. `change_capture`: also
        make, or remove, what records changed rows for incremental snapshots."""
        conn = connect(self.settings.require_database(), purpose="coldstore init")
        try:
            applied = migrate(conn)
            if reference_schema:
                install_reference_schema(conn)
            if schedule_trigger is not None:
                set_schedule_trigger(conn, installed=schedule_trigger)
            if change_capture is not None:
                capture.install(conn, self.settings.enabled_tiers()) if change_capture else capture.remove(conn)
            return applied
        finally:
            conn.close()
