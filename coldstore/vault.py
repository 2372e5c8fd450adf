"""An agent's own documents in the store, without a database: saved and brought back in two lines.

    vault = MemoryVault(agent="agent-42")
    vault.backup({"plan.md": "…"})          vault.restore()

What is written is a snapshot like any other, of the kind `documents`: checked, compressed, sealed, signed, retained and listed by the same
code. Nothing here imports a database's driver. Refuses what would not come back as it is, what does not fit its quota (before it is
written), and to let a far smaller memory take the place of the one before: that is stored, marked, and not what `restore` gives.

The newest save is the newest whatever the clock says: one that went back is overruled by what is in the store.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from coldstore import __version__, catalog, config, means
from coldstore.catalog import Heads, rfc3339
from coldstore.codec.compress import Codec
from coldstore.codec.digest import format_digest, row_digest
from coldstore.codec.pipeline import ordered_map
from coldstore.codec.sign import SigningKey
from coldstore.commit import Draft, Tally, WriteOptions
from coldstore.config import Settings
from coldstore.document import model
from coldstore.document.notes import Value, decode_note, encode_note
from coldstore.document.writer import DocumentWriter, PlainFrame, batches
from coldstore.documents import open_stored
from coldstore.errors import (
    ColdStoreError,
    ConfigError,
    ContentMismatch,
    CorruptDocument,
    DocumentError,
    InvalidMemory,
    NotFound,
    PruneIncomplete,
    SignatureError,
    SuspectSnapshot,
)
from coldstore.keyrings.ring import KeyRing
from coldstore.prune import kept_of
from coldstore.retention import Policy, decide
from coldstore.storage import layout
from coldstore.storage.store import ObjectInfo, Store
from coldstore.tiers import Scope

#: No place takes objects so small that a manifest would not fit.
SMALLEST_OBJECT = 64 << 10
_LATER = 10**15  # milliseconds: after every snapshot that an id can name
_LISTERS = 8


@dataclass(frozen=True, slots=True)
class VaultSnapshot:
    """One save. `created`: RFC 3339. `bytes`: plain; `stored_bytes` and `sha256`: as stored. `issuer`: the `did:key` that signed it.
    `problem`: why its manifest cannot be read, and then only `id` and `created` are known."""

    id: str
    created: str
    label: str | None = None
    documents: int = 0
    bytes: int = 0
    stored_bytes: int = 0
    sha256: str = ""
    signed: bool = False
    issuer: str | None = None
    sealed: bool = False
    suspect: str | None = None
    problem: str | None = None

    @classmethod
    def of(cls, manifest: model.Manifest) -> VaultSnapshot:
        signature = manifest.signature
        return cls(
            id=manifest.id,
            created=manifest.snapshot_at,
            label=manifest.label,
            documents=sum(manifest.rows().values()),
            bytes=manifest.bytes,
            stored_bytes=manifest.stored_bytes,
            sha256=manifest.sha256,
            signed=signature is not None,
            issuer=signature.by if signature else None,
            sealed=manifest.sealing is not None,
            suspect=manifest.suspect,
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class VaultStatus:
    """What the agent's snapshots take in the store. `quota_bytes` and `available_bytes` are None where there is no quota."""

    quota_bytes: int | None
    used_bytes: int
    available_bytes: int | None
    file_count: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class MemoryVault:
    """One agent's memory in a store. Settings are those of the command line; where they name no store, it is `default_folder()`.

    May be used by several threads at once, and by several processes. Use it as a context manager, or `close` it.
    """

    def __init__(
        self,
        agent: str,
        *,
        url: str | None = None,
        settings: Settings | None = None,
        quota_bytes: int | None = None,
        object_limit: int | None = None,
        clock: Callable[[], int] | None = None,
    ) -> None:
        """`url`: the store, instead of the configured one. `quota_bytes`: what the agent's snapshots may take there; `object_limit`: the
        largest object that it takes. `clock`: milliseconds since the epoch."""
        if not agent:
            raise ConfigError("the agent has no name", hint='Name it: MemoryVault(agent="agent-42").')
        self.agent = agent
        self.scope = Scope.user(agent)
        self.settings = settings or config.load()
        self.quota_bytes = _given(quota_bytes, self.settings.vault_quota_mb)
        self.object_limit = _given(object_limit, self.settings.vault_object_mb)
        self._url = url
        self._clock = clock or (lambda: time.time_ns() // 1_000_000)
        if self.quota_bytes is not None and self.quota_bytes < 0:
            raise ConfigError("a quota cannot be less than nothing", hint="Leave it out for none.")
        if self.object_limit is not None and self.object_limit < SMALLEST_OBJECT:
            raise ConfigError(f"an object must be allowed {SMALLEST_OBJECT:,} bytes", hint="A manifest has to fit into one.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if "store" in self.__dict__:
            self.__dict__.pop("store").close()

    @cached_property
    def store(self) -> Store:
        s = self.settings
        url = self._url or (None if s.url or s.backend or s.bucket or s.path else str(default_folder()))
        return means.open_store(s, url=url, path_style=s.path_style, options=s.options)

    @cached_property
    def rings(self) -> tuple[KeyRing, ...]:
        return means.open_rings(self.settings)

    @cached_property
    def signer(self) -> SigningKey | None:
        return means.open_signer(self.settings)

    # --- out -------------------------------------------------------------------------------------------------------------------

    def backup(
        self,
        documents: Mapping[str, Value],
        *,
        label: str | None = None,
        signer: SigningKey | None = None,
        prune_keep: int | None = None,
        accept: bool = False,
    ) -> VaultSnapshot:
        """Save a memory: names and texts, bytes or JSON values. `signer` signs it instead of the configured one; `prune_keep` prunes to
        so many with this label afterwards. Raises `InvalidMemory`, `QuotaExceeded`, or, when it is stored, `SuspectSnapshot` for one with
        far fewer documents than the one before; with `accept` that is no matter. `PruneIncomplete`: saved, but not pruned."""
        return self.backup_rows(rows_of(documents), label=label, signer=signer, prune_keep=prune_keep, accept=accept)

    def backup_rows(
        self,
        rows: Iterable[bytes],
        *,
        label: str | None = None,
        signer: SigningKey | None = None,
        prune_keep: int | None = None,
        accept: bool = False,
    ) -> VaultSnapshot:
        """The same of what `encode_note` made."""
        _check_keep(prune_keep)
        started = time.monotonic()
        size = self.settings.frame_mb << 20
        held = list(batches(rows, size=size))

        def frames(tally: Tally) -> Generator[PlainFrame]:
            document = DocumentWriter([model.DOCUMENTS], frame_size=size)
            document.open()
            for batch in held:
                tally.add(0, batch)
                if frame := document.rows(batch):
                    yield frame
            yield document.close()

        heads = Heads(self.store)
        timestamp = self._next_moment(heads)
        arrays = [(model.DOCUMENTS, model.DOCUMENTS)]
        options = self._options(signer, accept=accept)
        draft = Draft(self.store, self._header(timestamp, label), timestamp, arrays, options, started, heads, guard=lambda _: None)
        info = VaultSnapshot.of(draft.publish(frames))
        if info.suspect:
            raise SuspectSnapshot(
                f"{info.id} is stored, but looks wrong: {info.suspect}",
                key=info.id,
                hint="Was the memory lost? `restore` still gives the one before. If it is right, save it again with accept=True.",
            )
        if prune_keep is not None:
            self._prune_after(info, label, prune_keep)
        return info

    def _prune_after(self, saved: VaultSnapshot, label: str | None, keep: int) -> None:
        try:
            self.prune(label=label, keep=keep)
        except ColdStoreError as exc:
            raise PruneIncomplete(f"{saved.id} is saved, but older ones are still there: {exc}", hint=exc.hint, key=exc.key) from exc

    def _next_moment(self, heads: Heads) -> int:
        newest = heads.before(self.scope, _LATER)
        return max(self._clock(), layout.parse_id(newest.id)[1] + 1 if newest else 0)

    def _header(self, timestamp: int, label: str | None) -> model.Header:
        return model.Header(
            format=model.FORMAT,
            snapshot_at=rfc3339(timestamp),
            uid=self.agent,
            workspace=None,
            id=layout.snapshot_id(self.scope, timestamp),
            kind=model.DOCUMENTS,
            label=label,
            generator=f"coldstore {__version__}",
            database=None,
            schema=model.Schema(tables=[]),
        )

    def _options(self, signer: SigningKey | None, *, accept: bool) -> WriteOptions:
        s = self.settings
        return WriteOptions(
            codec=Codec(s.compression, s.compression_level),
            frame_size=s.frame_mb << 20,
            rings=self.rings if s.seal else (),
            signer=signer or self.signer,
            retain_days=s.retain_days,
            retain_mode=s.retain_mode,
            max_fall=s.max_fall,
            accept=accept,
            object_limit=self.object_limit,
            room=None if self.quota_bytes is None else self.quota_bytes - self._used()[0],
        )

    # --- back ------------------------------------------------------------------------------------------------------------------

    def restore(self, *, label: str | None = None, snapshot_id: str | None = None, verify: bool = True) -> dict[str, Value]:
        """The newest good memory, the newest with a label, or that of one snapshot. Raises `NotFound` when there is none, and never takes
        an older one for one that is damaged. Every byte is checked as it is read; `verify` also compares the whole with the manifest."""
        return self.read(self.find(label=label, snapshot_id=snapshot_id), verify=verify)

    def restore_rows(self, *, label: str | None = None, snapshot_id: str | None = None, verify: bool = True) -> list[bytes]:
        """The same for `decode_note`."""
        return self._rows(self.find(label=label, snapshot_id=snapshot_id), verify=verify)

    def find(self, *, label: str | None = None, snapshot_id: str | None = None) -> model.Manifest:
        """The manifest of the snapshot that is meant. Raises `NotFound`."""
        if snapshot_id is not None:
            if label is not None:
                raise ConfigError("a snapshot is named by its id or by its label, not by both")
            return self._own(snapshot_id)
        found = self._newest(label)
        if found is None:
            labelled = f" labelled {label!r}" if label is not None else ""
            raise NotFound(f"{self.store.url} has no memory of agent {self.agent!r}{labelled}", hint="A first run has none.")
        return found

    def read(self, manifest: model.Manifest, *, verify: bool = True) -> dict[str, Value]:
        found: dict[str, Value] = {}
        for row in self._rows(manifest, verify=verify):
            name, value, _ = decode_note(row)
            if name in found:
                raise CorruptDocument(f"{manifest.id} has two documents of the name {name!r}", key=manifest.document)
            found[name] = value
        return found

    def _rows(self, manifest: model.Manifest, *, verify: bool) -> list[bytes]:
        means.trust_of(self.settings, self.signer).check(manifest.signature, what=manifest.id)
        document = open_stored(self.store, manifest, rings=self.rings)
        rows = [row for part in document.parts([model.DOCUMENTS]) for row in part.rows()]
        if verify:
            summary = document.tiers[0] if document.tiers else None
            if summary is None or (len(rows), format_digest(sum(map(row_digest, rows)))) != (summary.rows, summary.digest):
                raise ContentMismatch(f"the documents of {manifest.id} are not those that its manifest was made for", key=manifest.document)
        return rows

    def _own(self, snapshot_id: str) -> model.Manifest:
        manifest = catalog.read_manifest(self.store, snapshot_id)
        if catalog.scope_of(manifest) != self.scope:
            raise NotFound(f"{snapshot_id} is of {catalog.scope_of(manifest)}, and this vault is of agent {self.agent!r}")
        if manifest.kind != model.DOCUMENTS:
            raise NotFound(f"{snapshot_id} holds rows of tables and no documents", hint=f"`coldstore restore {snapshot_id} --to URL`.")
        return manifest

    def _newest(self, label: str | None) -> model.Manifest | None:
        return catalog.newest_or_none(self.store, self.scope, label=label, documents=True)

    # --- what there is ---------------------------------------------------------------------------------------------------------

    def list_snapshots(self, *, label: str | None = None) -> list[VaultSnapshot]:
        """Newest first. One that is damaged stands there with its `problem`, whatever label it had."""
        found: list[VaultSnapshot] = []
        for each in self._found():
            if isinstance(each, ColdStoreError):
                key = layout.parse_key(each.key or "")
                found += [VaultSnapshot(key.id, rfc3339(key.timestamp), problem=str(each))] if key else []
            elif label is None or each.label == label:
                found.append(VaultSnapshot.of(each))
        return found

    def _found(self) -> Iterator[model.Manifest | ColdStoreError]:
        """Raises what leaves open what there is."""
        for each in catalog.manifests(self.store, scope=self.scope):
            if isinstance(each, model.Manifest):
                if each.kind == model.DOCUMENTS:
                    yield each
            elif isinstance(each, DocumentError | NotFound | SignatureError):
                yield each
            else:
                raise each

    def latest(self, *, label: str | None = None) -> VaultSnapshot | None:
        """What `restore` would give; None when there is nothing."""
        found = self._newest(label)
        return VaultSnapshot.of(found) if found else None

    def status(self) -> VaultStatus:
        used, count = self._used()
        available = None if self.quota_bytes is None else max(0, self.quota_bytes - used)
        return VaultStatus(self.quota_bytes, used, available, count)

    def _used(self) -> tuple[int, int]:
        """(bytes, objects) below `snapshots/`."""
        name = layout.scope_name(self.scope)

        def of_day(day: str) -> list[ObjectInfo]:
            found = ((o, layout.parse_key(o.key)) for o in self.store.list(f"{layout.SNAPSHOTS}{day}/memory-{name}-"))
            return [o for o, key in found if key and key.scope_name == name]

        objects = [o for found in ordered_map(of_day, self.store.folders(layout.SNAPSHOTS), workers=_LISTERS) for o in found]
        return sum(o.size for o in objects), len(objects)

    # --- away ------------------------------------------------------------------------------------------------------------------

    def prune(self, *, keep: int, label: str | None = None) -> list[str]:
        """Delete all but the newest `keep` good ones with this label; without one, of those that have none. Returns the ids that are gone.
        What `restore` gives stays, and so does what is retained, damaged, not trusted, or suspect with no good one after it."""
        _check_keep(keep)
        found = {m.id: m for m in self._found() if isinstance(m, model.Manifest) and m.label == label}
        trust = means.trust_of(self.settings, self.signer)
        policy = Policy(last=keep, floor=keep, labels=False)
        now = max(self._clock(), *(layout.parse_id(name)[1] for name in found), 0)  # a clock that went back must not keep everything
        going = [found[d.snapshot.id] for d in decide((kept_of(m, trust) for m in found.values()), policy, now=now) if not d.keep]
        if going:
            catalog.delete(self.store, going, now=self._clock(), signer=self.signer)
        return [m.id for m in going]

    def delete_snapshot(self, snapshot_id: str) -> None:
        """Delete one, even the newest, and leave a record of it. Raises `ObjectLocked` while it must be kept."""
        catalog.delete(self.store, [self._own(snapshot_id)], now=self._clock(), signer=self.signer)


def rows_of(documents: Mapping[str, Value]) -> list[bytes]:
    """A memory as the rows of a snapshot. Raises `InvalidMemory`."""
    if not isinstance(documents, Mapping):
        raise InvalidMemory(f"a memory is a dictionary of documents, not {type(documents).__name__}", hint='Save {"name": text}.')
    return [encode_note(name, value) for name, value in dict(documents).items()]


def default_folder() -> Path:
    """Where memory goes when nothing is configured: a folder of this user's, the same wherever the program is started."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "coldstore"


def _given(size: int | None, megabytes: float | None) -> int | None:
    return size if size is not None or megabytes is None else int(megabytes * 1_000_000)


def _check_keep(keep: int | None) -> None:
    if keep is not None and keep < 1:
        raise ConfigError("a vault keeps one snapshot or more", hint="`delete_snapshot` deletes the last one.")
