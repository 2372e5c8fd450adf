"""Somebody who may write to the store: bytes that were flipped, objects that were cut, swapped, moved, removed, replayed, signed anew.

The owner of a sealed and signed store reads it with `require_signature`. Whatever was done to it, `verify --all --deep` must say so, and no
read may give other content than was written. What nothing in a store can show is done too, and must go unnoticed, so that what the
documentation says of it is true: the newest snapshot removed with its pointers, and in a store without signatures a rewrite that agrees
with itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import google_crc32c
import msgspec

from coldstore.app import ColdStore
from coldstore.codec.digest import format_digest, row_digest
from coldstore.codec.sign import SigningKey
from coldstore.document import model
from coldstore.errors import ColdStoreError, ContentMismatch
from coldstore.export import snapshot
from coldstore.keyrings.files import write_secret
from coldstore.keyrings.local import make_key_file, retire_key, rotate_key_file
from coldstore.postgres.source import Source
from coldstore.storage import layout
from coldstore.tiers import EVERYBODY, Scope
from tests.torture.summary import Summary
from tests.torture.world import World, execute

TIERS = {
    "notes": {"table": "public.notes"},
    "facts": {"table": "public.facts"},
    **{name: {"enabled": False} for name in ("daily_memories", "graph_entities", "procedural_memory")},
}
TABLES = """
CREATE TABLE notes (id int PRIMARY KEY, uid text NOT NULL, body text);
CREATE TABLE facts (uid text, name text, PRIMARY KEY (uid, name));
INSERT INTO notes SELECT n, (array['ann', 'ben'])[n % 2 + 1], 'note ' || n FROM generate_series(1, 12) n;
INSERT INTO facts SELECT (array['ann', 'ben'])[n % 2 + 1], 'fact ' || n FROM generate_series(1, 4) n;
"""
FRAME = 150  # bytes: several in each array
LARGE = "INSERT INTO notes SELECT n, 'u', (SELECT string_agg(md5(n || '-' || k), '') FROM generate_series(1, 300) k) FROM generate_series(1, 5600) n"
ANN, BEN = Scope.user("ann"), Scope.user("ben")
Objects = Mapping[str, bytes | None]  # key → what is to lie there; None: nothing
Rows = list[tuple[str, bytes]]


# --- a store and its owner ---------------------------------------------------------------------------------------------------------


@dataclass
class Vault:
    """A store on a disk, what was written to it, and three readers: its owner, one who requires no signature, and the way to write."""

    root: Path
    owner: ColdStore
    lenient: ColdStore
    writer: ColdStore
    stranger: SigningKey = field(default_factory=SigningKey.generate)
    objects: dict[str, bytes] = field(default_factory=dict)
    truth: dict[str, Rows] = field(default_factory=dict)
    headers: dict[str, int] = field(default_factory=dict)  # document → bytes of its first frame

    def take(self, scope: Scope = EVERYBODY, *, label: str | None = None, source: Source | None = None, frame_size: int = FRAME) -> str:
        options = replace(self.writer._export_options(), frame_size=frame_size)
        manifest = snapshot(
            source or self.writer.source,
            self.writer.store,
            tiers=self.writer.settings.enabled_tiers(),
            scope=scope,
            label=label,
            options=options,
        )
        return manifest.id

    def settle(self) -> None:
        """From here on it is what the store holds that must not be changed."""
        self.objects = {str(p.relative_to(self.root)): p.read_bytes() for p in sorted(self.root.rglob("*")) if p.is_file()}
        self.truth = {m.id: rows_of(self.owner, m.id) for m in self.manifests()}
        self.headers = {m.document: m.frames[0].length for m in self.manifests()}

    def manifests(self) -> list[model.Manifest]:
        """The newest first."""
        return [self.owner.manifest(i.id) for i in self.owner.list_snapshots() if not isinstance(i, ColdStoreError)]

    def of(self, scope: Scope) -> list[model.Manifest]:
        return [m for m in self.manifests() if (m.uid, m.workspace) == (scope.uid, scope.workspace)]

    def all_of(self, snapshot: str) -> list[str]:
        """The keys of its objects."""
        return [k for k in self.objects if (p := layout.parse_key(k)) and p.id == snapshot]

    def keys(self, kind: str) -> list[str]:
        return [k for k in self.objects if kind_of(k) == kind]

    @contextmanager
    def changed(self, changes: Objects) -> Iterator[None]:
        try:
            for key, data in changes.items():
                self._put(key, data)
            yield
        finally:
            for key in changes:
                self._put(key, self.objects.get(key))

    def _put(self, key: str, data: bytes | None) -> None:
        path = self.root / key
        path.unlink(missing_ok=True)
        if data is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    @contextmanager
    def flipped(self, key: str, at: int, mask: int) -> Iterator[None]:
        good = self.objects[key][at : at + 1]
        fd = os.open(self.root / key, os.O_WRONLY)
        try:
            os.pwrite(fd, bytes([good[0] ^ mask]), at)
            yield
            os.pwrite(fd, good, at)
        finally:
            os.close(fd)


def kind_of(key: str) -> str:
    parsed = layout.parse_key(key)
    if parsed is None:
        return "deletion record" if key.startswith(layout.DELETIONS) else "pointer"
    return "manifest" if parsed.is_manifest else "key object" if parsed.is_keys else "document"


def rows_of(cold: ColdStore, snapshot: str | None) -> Rows:
    """As a restore reads them: their digests must be the manifest's."""
    document = cold.document(snapshot)
    found: dict[str, list[bytes]] = {t.array: [] for t in document.tiers or []}
    for part in document.parts(found):
        found[part.array] += map(bytes, part.rows())
    for tier in document.tiers or []:
        if format_digest(sum(map(row_digest, found[tier.array]))) != tier.digest:
            raise ContentMismatch(f"{tier.tier} of {document.name} is not what was written")
    return sorted((array, row) for array, rows in found.items() for row in rows)


def reading(cold: ColdStore, vault: Vault, snapshot: str) -> str:
    try:
        rows = rows_of(cold, snapshot)
    except ColdStoreError:
        return "refused"
    return "true" if rows == vault.truth.get(snapshot) else "OTHER"


def reported(cold: ColdStore, snapshot: str | None = None) -> list[str]:
    """What verify says is wrong. Of a whole store it must never fail as such: a damaged snapshot must hide no other."""
    try:
        verdicts = cold.verify(snapshot, deep=True)
    except ColdStoreError as exc:
        if snapshot is None:
            raise
        return [str(exc)]
    return [f"{v.id}: {v.as_dict()['problems']}" for v in verdicts if not v.ok]


@contextmanager
def vaults(world: World, *, sealed: bool, rows: str = TABLES) -> Iterator[Vault]:
    """A small store with history: three scopes, a label, a deletion in the middle and one at the end, and keys that were rotated since."""
    folder = world.folder / f"tamper-{world.number()}"
    folder.mkdir()
    with ExitStack() as stack:
        url = stack.enter_context(world.target())
        execute(url, rows)
        place = {"path": str(folder / "store"), "database_url": url}
        common: dict[str, Any] = {"tiers": TIERS, "compression": "none"}
        signing: dict[str, Any] = {}
        if sealed:
            make_key_file(folder / "keys")
            signer = SigningKey.generate()
            write_secret(folder / "signing", signer.text(), what="signing key")
            common |= {"key_rings": [f"local:{folder / 'keys'}"], "trusted_keys": [signer.did]}
            signing = {"signing_key_file": str(folder / "signing")}

        def cold(**more: Any) -> ColdStore:
            return stack.enter_context(world.cold(place, **common, **more))

        writer = cold(**signing)
        vault = Vault(folder / "store", writer, writer, writer)
        if rows == TABLES:
            _history(vault, url, folder / "keys" if sealed else None, lambda: cold(**signing))
        else:
            vault.take(frame_size=1 << 20)
        vault.owner, vault.lenient = cold(require_signature=sealed), cold()
        vault.settle()
        yield vault


def _history(vault: Vault, url: str, keys: Path | None, reopened: Callable[[], ColdStore]) -> None:
    vault.take()
    vault.take(ANN)
    execute(url, "INSERT INTO notes VALUES (13, 'ann', 'later')")
    going = vault.take(ANN)
    last = vault.take(ANN)
    vault.take(BEN)
    vault.take(label="kept")
    vault.writer.delete([going])
    if keys is not None:
        old = rotate_and_retire(keys, lambda: reopened().rewrap())
        assert old
        vault.writer = reopened()
    execute(url, "UPDATE notes SET body = 'otherwise' WHERE id = 1")
    vault.take(ANN)
    vault.take()
    vault.writer.delete([vault.take(BEN)])
    assert last in [m.id for m in vault.manifests()]


def rotate_and_retire(keys: Path, rewrap: Callable[[], object]) -> str:
    """A new key, every snapshot wrapped for it, and the old one gone for good: now the added keys are needed."""
    old = next(line for line in keys.read_text().splitlines() if line.startswith("coldstore-key-1:")).split(":")[1]
    rotate_key_file(keys)
    rewrap()
    retire_key(keys, old)
    return old


# --- flips -------------------------------------------------------------------------------------------------------------------------


def flips(world: World, *, seed: int, runs: int | None = None, sealed: bool = True, whole: int = 1000) -> Summary:
    """`runs` bytes of all objects, or every byte, one after the other. `whole`: of so many the whole store is verified; of the others the
    snapshot that the byte belongs to, by the same code."""
    summary = Summary("tamper flips" if sealed else "tamper flips, neither sealed nor signed", seed)
    rng = random.Random(seed)
    with vaults(world, sealed=sealed) as vault, summary.timed():
        places = [
            (key, at) for key, data in vault.objects.items() for at in range(len(data)) if sealed or kind_of(key) != "deletion record"
        ]
        summary.figures["objects"] = f"{len(vault.objects)}, {sum(map(len, vault.objects.values()))} bytes"
        rng.shuffle(places)
        assert reported(vault.owner) == []
        for number, (key, at) in enumerate(places[:runs]):
            mask = rng.randrange(1, 256)
            with vault.flipped(key, at, mask):
                outcome, broken = _judge_flip(vault, key, at, whole=number < whole)
            summary.count(outcome, broken, where=f"byte {at} of {key} xor {mask}")
        assert reported(vault.owner) == []
    return summary


def _judge_flip(vault: Vault, key: str, at: int, *, whole: bool) -> tuple[str, list[str]]:
    kind = kind_of(key)
    if kind in {"pointer", "deletion record"}:
        told = reported(vault.owner)
        read = {reading(vault.owner, vault, snapshot) for snapshot in vault.truth} if kind == "pointer" else {"true"}
        broken = [f"reading gives {read}"] if read != {"true"} else []
        if kind == "pointer":
            newest = vault.of(EVERYBODY)[0].id
            broken += ["the newest one is another"] if rows_of(vault.owner, None) != vault.truth[newest] else []
            return f"{kind}: {'reported' if told else 'not reported, harmless'}", broken
        return f"{kind}: reported", broken + ([] if told else ["not reported"])
    parsed = layout.parse_key(key)
    assert parsed is not None
    told = reported(vault.owner, None if whole else parsed.id)
    read_as = reading(vault.owner, vault, parsed.id)
    broken = [] if told else ["not reported"]
    if kind == "document" and at < vault.headers[key]:  # a restore does not read it: the manifest has all of it
        return f"{kind}, in its header: reported", broken + ([] if read_as == "true" else [f"reading the rows gives {read_as}"])
    return f"{kind}: reported and refused", broken + ([] if read_as == "refused" else [f"reading it gives {read_as}"])


def large(world: World, *, seed: int, runs: int) -> Summary:
    """Bytes of one sealed document of more than 50 MB. Of every tenth the frame's checksums are made to fit, as somebody would: then the
    seal must notice by itself."""
    summary = Summary("tamper flips, large", seed)
    rng = random.Random(seed)
    rows = TABLES.partition("INSERT")[0] + LARGE
    with vaults(world, sealed=True, rows=rows) as vault, summary.timed():
        (manifest,) = vault.manifests()
        size = manifest.stored_bytes
        summary.figures["document"] = f"{size} bytes, {len(manifest.frames)} frames"
        assert size > 50_000_000
        document = vault.owner.stored_document(manifest.id)
        frames = manifest.frames
        for number in range(runs):
            at, mask = rng.randrange(size), rng.randrange(1, 256)
            found = next(n for n, f in enumerate(frames) if f.offset <= at < f.offset + f.length)
            fitting = number % 10 == 0
            with vault.flipped(manifest.document, at, mask):
                read = replace(document, manifest=_with_sums(vault, manifest, found)) if fitting else document
                try:
                    read.frame(found)
                    broken = [f"frame {found} opens"]
                except ColdStoreError:
                    broken = []
            summary.count("refused by the seal" if fitting else "refused", broken, where=f"byte {at} xor {mask}")
        assert reported(vault.owner) == []
    return summary


def _with_sums(vault: Vault, manifest: model.Manifest, number: int) -> model.Manifest:
    frame = manifest.frames[number]
    with (vault.root / manifest.document).open("rb") as file:
        file.seek(frame.offset)
        stored = file.read(frame.length)
    changed = msgspec.structs.replace(frame, **_sums(stored))
    return msgspec.structs.replace(manifest, frames=[*manifest.frames[:number], changed, *manifest.frames[number + 1 :]])


def _sums(stored: bytes) -> dict[str, str]:
    return {"crc32c": f"{google_crc32c.value(stored):08x}", "sha256": hashlib.sha256(stored).hexdigest()}


# --- tricks ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trick:
    """`changes` to the store. `noticed`: whether verify must say so. `reads`: what a read of any snapshot may come out as."""

    name: str
    changes: Objects
    noticed: bool = True
    reads: frozenset[str] = frozenset({"refused", "true"})


def tricks(world: World, *, seed: int, runs: int) -> Summary:
    """`runs` times one of `TRICKS`, each against another snapshot."""
    summary = Summary("tamper tricks", seed)
    rng = random.Random(seed)
    with vaults(world, sealed=True) as vault, summary.timed():
        replayed = _replay(vault)
        assert reported(vault.owner) == []
        for number in range(runs):
            make = [*TRICKS, replayed][number % (len(TRICKS) + 1)]
            trick = make(vault, rng)
            summary.count(*_judge(vault, trick), where=f"run {number}")
        assert reported(vault.owner) == []
    return summary


def _judge(vault: Vault, trick: Trick) -> tuple[str, list[str]]:
    with vault.changed(trick.changes):
        told = reported(vault.owner)
        ids = {*vault.truth, *(p.id for k in trick.changes if (p := layout.parse_key(k)))}
        reads = {reading(cold, vault, snapshot) for cold in (vault.owner, vault.lenient) for snapshot in ids}
    broken = [] if bool(told) == trick.noticed else [f"{trick.name}: {told or 'not reported'}; {sorted(trick.changes)}"]
    broken += [f"{trick.name}: read as {read}; {sorted(trick.changes)}" for read in reads - trick.reads]
    return f"{trick.name}: {'reported' if told else 'not reported, as documented'}", broken


def _cut(vault: Vault, rng: random.Random) -> Trick:
    key = rng.choice([k for k in vault.objects if kind_of(k) != "pointer"])
    return Trick(f"cut a {kind_of(key)}", {key: vault.objects[key][: rng.randrange(len(vault.objects[key]))]})


def _swap(vault: Vault, rng: random.Random) -> Trick:
    kind = rng.choice(["manifest", "document", "key object", "deletion record"])
    one, other = rng.sample(vault.keys(kind), 2)
    return Trick(f"swap two {kind}s", {one: vault.objects[other], other: vault.objects[one]})


def _swap_any(vault: Vault, rng: random.Random) -> Trick:
    one = rng.choice([k for k in vault.objects if kind_of(k) != "pointer"])
    other = rng.choice([k for k in vault.objects if kind_of(k) not in {"pointer", kind_of(one)}])
    return Trick("swap two objects of different kinds", {one: vault.objects[other], other: vault.objects[one]})


def _delete_object(vault: Vault, rng: random.Random) -> Trick:
    """Not the record of a deletion at the end of a scope: nothing follows it that could miss it."""
    needed = [
        k for k in vault.keys("deletion record") if _deleted(vault, k).startswith("memory-ann") and _deleted(vault, k) not in vault.truth
    ]
    key = rng.choice([*vault.keys("manifest"), *vault.keys("document"), *vault.keys("key object"), *needed])
    return Trick(f"delete a {kind_of(key)}", {key: None})


def _deleted(vault: Vault, record: str) -> str:
    return str(json.loads(vault.objects[record])["snapshots"][0]["id"])


def _delete_last_record(vault: Vault, _rng: random.Random) -> Trick:
    (key,) = (k for k in vault.keys("deletion record") if _deleted(vault, k).startswith("memory-ben"))
    return Trick("delete the record of a snapshot that was the newest", {key: None}, noticed=False, reads=frozenset({"true", "refused"}))


def _move(vault: Vault, rng: random.Random) -> Trick:
    """To another day, with everything in it as it was, or with its new name in the manifest."""
    manifest = rng.choice(vault.manifests())
    scope, at = layout.parse_id(manifest.id)
    identity = f"memory-{scope}-{at - rng.randrange(1, 90) * 86_400_000 - 1}"
    changes: dict[str, bytes | None] = dict.fromkeys(vault.all_of(manifest.id))
    for key in vault.all_of(manifest.id):
        suffix = key.partition(manifest.id)[2]
        changes[f"{layout.folder_of(identity)}{identity}{suffix}"] = vault.objects[key]
    how = rng.choice(["as it was", "with the new name in the manifest", "and signed by a stranger"])
    if how != "as it was":
        body = _body(manifest)
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(layout.parse_id(identity)[1] // 1000))
        body |= {"id": identity, "document": layout.document_key(identity, ".enc"), "snapshotAt": f"{when}.{at % 1000:03}Z"}
        signer = vault.stranger if "signed" in how else None
        changes[layout.manifest_key(identity)] = model.encode_record(body, signer=signer)
    return Trick(f"move to another id, {how}", changes)


def _frames_between(vault: Vault, rng: random.Random) -> Trick:
    """One frame of another snapshot in the place of one's own, sums and sizes to match."""
    mine, other = rng.sample(vault.manifests(), 2)
    pieces, frames = _pieces(vault, mine), _body(mine)["frames"]
    theirs, their_frames = _pieces(vault, other), _body(other)["frames"]
    at = rng.randrange(1, len(frames))
    candidates = [n for n, f in enumerate(their_frames) if f["tier"] == frames[at]["tier"]]
    taken = at if at in candidates else rng.choice(candidates)
    pieces[at], frames[at] = theirs[taken], their_frames[taken]
    return Trick("a frame of another snapshot", _rebuilt(vault, mine, pieces, frames, rng))


def _frames_within(vault: Vault, rng: random.Random) -> Trick:
    manifest = rng.choice(vault.manifests())
    pieces, frames = _pieces(vault, manifest), _body(manifest)["frames"]
    one, other = rng.sample(range(len(frames)), 2)
    if rng.random() < 0.5:  # the other's place is kept, one is there twice
        pieces[one], frames[one] = pieces[other], {**frames[other], "tier": frames[one]["tier"]}
        return Trick("a frame twice", _rebuilt(vault, manifest, pieces, frames, rng))
    pieces[one], pieces[other] = pieces[other], pieces[one]
    frames[one], frames[other] = {**frames[other], "tier": frames[one]["tier"]}, {**frames[one], "tier": frames[other]["tier"]}
    return Trick("two frames swapped", _rebuilt(vault, manifest, pieces, frames, rng))


def _frames_dropped(vault: Vault, rng: random.Random) -> Trick:
    manifest = rng.choice([m for m in vault.manifests() if len(m.frames) > 4])
    pieces, frames = _pieces(vault, manifest), _body(manifest)["frames"]
    candidates = [n for n, f in enumerate(frames) if n and sum(g["tier"] == f["tier"] for g in frames) > 1]
    at = rng.choice(candidates)
    del pieces[at], frames[at]
    return Trick("a frame dropped", _rebuilt(vault, manifest, pieces, frames, rng))


def _strip(vault: Vault, rng: random.Random) -> Trick:
    manifest = rng.choice(vault.manifests())
    return Trick("strip the signature", {layout.manifest_key(manifest.id): model.encode_record(_body(manifest))})


def _sign_again(vault: Vault, rng: random.Random) -> Trick:
    manifest = rng.choice(vault.manifests())
    forged = model.encode_record(_body(manifest), signer=vault.stranger)
    return Trick("sign with a stranger's key", {layout.manifest_key(manifest.id): forged})


def _pose(vault: Vault, rng: random.Random) -> Trick:
    """Signed by a stranger in the owner's name."""
    manifest = rng.choice(vault.manifests())
    body = _body(manifest) | {"label": "posed"}
    forged = json.loads(model.encode_record(body, signer=vault.stranger))
    forged["signature"]["by"] = manifest.signature.by if manifest.signature else ""
    return Trick("sign in the owner's name", {layout.manifest_key(manifest.id): _summed(forged)})


def _wrapped_keys(vault: Vault, rng: random.Random) -> Trick:
    mine, other = rng.sample(vault.manifests(), 2)
    body = _body(mine)
    body["sealing"] = {**body["sealing"], "keys": _body(other)["sealing"]["keys"]}
    return Trick("another snapshot's wrapped keys", {layout.manifest_key(mine.id): _signed_somehow(vault, mine, body, rng)})


def _wrapped_keys_added(vault: Vault, rng: random.Random) -> Trick:
    """As an object: moved as it is, or made by hand."""
    key = rng.choice(vault.keys("key object"))
    other = rng.choice([k for k in vault.keys("key object") if k != key])
    snapshot = layout.parse_key(key).id  # type: ignore[union-attr]
    wrapped = json.loads(vault.objects[other])["keys"]
    body = {"format": model.FORMAT, "kind": "keys", "id": snapshot, "keys": wrapped}
    forged = model.encode_record(body, signer=rng.choice([None, vault.stranger]))
    return Trick("forge added keys", {rng.choice([key, layout.keys_key(snapshot, 9)]): forged})


def _remove_middle(vault: Vault, rng: random.Random) -> Trick:
    manifest = _middle(vault, rng)
    return Trick("remove one in the middle", dict.fromkeys(vault.all_of(manifest.id)))


def _remove_with_forged_record(vault: Vault, rng: random.Random) -> Trick:
    manifest = _middle(vault, rng)
    at = layout.parse_id(manifest.id)[1] + 1
    signer = rng.choice([None, vault.stranger])
    forged = {layout.deletion_key(at, "00000000"): _record(manifest, at, signer)}
    who = "signed by a stranger" if signer else "not signed"
    return Trick(f"remove one with a record {who}", {**dict.fromkeys(vault.all_of(manifest.id)), **forged})


def _remove_newest(vault: Vault, rng: random.Random) -> Trick:
    """Its pointer stays."""
    manifest = vault.of(rng.choice([EVERYBODY, ANN, BEN]))[0]
    return Trick("remove the newest", dict.fromkeys(vault.all_of(manifest.id)))


def _remove_newest_with_pointer(vault: Vault, rng: random.Random) -> Trick:
    """Not ben's: after it there was one whose deletion record names it."""
    scope = rng.choice([EVERYBODY, ANN])
    manifest = vault.of(scope)[0]
    pointers = [k for k in vault.keys("pointer") if manifest.id.encode() in vault.objects[k]]
    return Trick("remove the newest and its pointer", dict.fromkeys([*vault.all_of(manifest.id), *pointers]), noticed=False)


TRICKS: tuple[Callable[[Vault, random.Random], Trick], ...] = (
    _cut,
    _swap,
    _swap_any,
    _delete_object,
    _delete_last_record,
    _move,
    _frames_between,
    _frames_within,
    _frames_dropped,
    _strip,
    _sign_again,
    _pose,
    _wrapped_keys,
    _wrapped_keys_added,
    _remove_middle,
    _remove_with_forged_record,
    _remove_newest,
    _remove_newest_with_pointer,
)


class _Stopped(Source):
    """A database whose clock stands at one millisecond."""

    at = 0

    @contextmanager
    def moment(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        with super().moment(*arguments, **options) as moment:
            moment.timestamp = self.at
            yield moment


def _replay(vault: Vault) -> Callable[[Vault, random.Random], Trick]:
    """Two snapshots of one id, both by the owner: the first was deleted before the second was taken. Somebody kept a copy."""
    url = vault.writer.settings.require_database()
    source = _Stopped(url)
    _Stopped.at = layout.parse_id(vault.of(ANN)[0].id)[1] + 1000
    first = vault.take(ANN, source=source)
    before = {k: (vault.root / k).read_bytes() for k in _files_of(vault, first)}
    vault.writer.delete([first])
    execute(url, "UPDATE notes SET body = 'and again' WHERE id = 13")
    second = vault.take(ANN, source=source)
    assert first == second
    _Stopped.at += 1000
    vault.take(ANN, source=source)
    source.close()
    vault.settle()

    def replay(_vault: Vault, _rng: random.Random) -> Trick:
        # What is read is the owner's own, and old; that it is not what belongs there the succession tells.
        return Trick("replay an older version under the same names", before, reads=frozenset({"true", "OTHER"}))

    return replay


def _files_of(vault: Vault, snapshot: str) -> list[str]:
    return [str(p.relative_to(vault.root)) for p in vault.root.rglob(f"{snapshot}.*")]


def _middle(vault: Vault, rng: random.Random) -> model.Manifest:
    """One that another one names as the snapshot before it."""
    named = {m.previous.id for m in vault.manifests() if m.previous}
    return rng.choice([m for m in vault.manifests() if m.id in named])


def _body(manifest: model.Manifest) -> dict[str, Any]:
    return dict(json.loads(model.encode_manifest(manifest)))


def _summed(body: dict[str, Any]) -> bytes:
    """With a checksum that fits, and the signature that is there."""
    rest = {k: v for k, v in body.items() if k != "checksum"}
    return model.canonical({**rest, "checksum": hashlib.sha256(model.canonical(rest)).hexdigest()}) + b"\n"


def _signed_somehow(vault: Vault, manifest: model.Manifest, body: dict[str, Any], rng: random.Random) -> bytes:
    """As somebody can who has not the owner's key: with the old signature, with none, or with another's."""
    how = rng.randrange(3)
    return _summed(body) if how == 0 else model.encode_record(body, signer=None if how == 1 else vault.stranger)


def _pieces(vault: Vault, manifest: model.Manifest) -> list[bytes]:
    stored = vault.objects[manifest.document]
    return [stored[f.offset : f.offset + f.length] for f in manifest.frames]


def _rebuilt(vault: Vault, manifest: model.Manifest, pieces: list[bytes], frames: list[dict[str, Any]], rng: random.Random) -> Objects:
    """Document and manifest that agree with each other, as far as whoever has no key can make them."""
    at = 0
    made = []
    for piece, frame in zip(pieces, frames, strict=True):
        made.append({**frame, **_sums(piece), "offset": at, "length": len(piece)})
        at += len(piece)
    stored, body = b"".join(pieces), _body(manifest)
    tiers = [{**t, "rows": sum(f["rows"] for f in made if f["tier"] == t["array"])} for t in body["tiers"]]
    body |= {"frames": made, "tiers": tiers, "storedBytes": at, "bytes": sum(f["plain"] for f in made)}
    body["sha256"] = hashlib.sha256(stored).hexdigest()
    return {manifest.document: stored, layout.manifest_key(manifest.id): _signed_somehow(vault, manifest, body, rng)}


def _record(manifest: model.Manifest, at: int, signer: SigningKey | None) -> bytes:
    body = _body(manifest)
    gone = {name: body[name] for name in ("id", "checksum", "previous", "seconds")}
    when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at // 1000)) + f".{at % 1000:03}Z"
    return model.encode_record({"format": model.FORMAT, "kind": "deletion", "at": when, "snapshots": [gone]}, signer=signer)


# --- neither sealed nor signed -----------------------------------------------------------------------------------------------------


def accidents(world: World, *, seed: int, runs: int) -> Summary:
    """What may happen to a store that is neither sealed nor signed is noticed; a rewrite that agrees with itself is not."""
    summary = Summary("tamper accidents, neither sealed nor signed", seed)
    rng = random.Random(seed)
    with vaults(world, sealed=False) as vault, summary.timed():
        choices = (_plain_cut, _plain_swap, _plain_delete, _remove_middle, _remove_newest, _rewrite)
        for number in range(runs):
            trick = choices[number % len(choices)](vault, rng)
            summary.count(*_judge(vault, trick), where=f"run {number}")
        with vault.changed(_rewrite(vault, rng).changes):
            summary.figures["the rewrite, to one who requires a signature"] = _required(world, vault)
    return summary


def _of_snapshots(vault: Vault) -> list[str]:
    return [*vault.keys("manifest"), *vault.keys("document")]


def _plain_cut(vault: Vault, rng: random.Random) -> Trick:
    key = rng.choice(_of_snapshots(vault))
    return Trick(f"cut a {kind_of(key)}", {key: vault.objects[key][: rng.randrange(len(vault.objects[key]))]})


def _plain_swap(vault: Vault, rng: random.Random) -> Trick:
    one, other = rng.sample(_of_snapshots(vault), 2)
    return Trick("swap two objects", {one: vault.objects[other], other: vault.objects[one]})


def _plain_delete(vault: Vault, rng: random.Random) -> Trick:
    key = rng.choice(_of_snapshots(vault))
    return Trick(f"delete a {kind_of(key)}", {key: None})


def _rewrite(vault: Vault, rng: random.Random) -> Trick:
    """One letter of a row of the newest, and everything that speaks of it: frame, sums, digest, checksum, pointer."""
    manifest = vault.of(rng.choice([ANN, EVERYBODY]))[0]
    pieces, frames = _pieces(vault, manifest), _body(manifest)["frames"]
    pieces = [p.replace(b'"body":"note', b'"body":"nope') for p in pieces]
    body = json.loads(_rebuilt(vault, manifest, pieces, frames, rng)[layout.manifest_key(manifest.id)] or b"")
    stored = b"".join(pieces)
    notes = [line.removesuffix(b",") for line in stored.split(b"\n") if line.startswith(b'{"id"')]
    for tier in body["tiers"]:
        if tier["array"] == "notes":
            tier["digest"] = format_digest(sum(map(row_digest, notes)))
    body["plainSha256"] = body["sha256"]
    forged = model.encode_record(body)
    checksum = json.loads(forged)["checksum"]
    pointers = {
        k: vault.objects[k].replace(manifest.checksum.encode(), checksum.encode())
        for k in vault.keys("pointer")
        if manifest.checksum.encode() in vault.objects[k]
    }
    changes = {manifest.document: stored, layout.manifest_key(manifest.id): forged, **pointers}
    return Trick("rewrite the newest, everything fitting", changes, noticed=False, reads=frozenset({"true", "OTHER"}))


def _required(world: World, vault: Vault) -> str:
    place = {"path": str(vault.root), "require_signature": True, "trusted_keys": [vault.stranger.did]}
    with world.cold(place, tiers=TIERS) as cold:
        return "refused" if {reading(cold, vault, s) for s in vault.truth} == {"refused"} else "READ"


def campaign(world: World, seed: int, runs: int) -> Iterator[Summary]:
    """The long form: every byte of the small stores, `runs` of the large one and of the tricks."""
    yield flips(world, seed=seed)
    yield large(world, seed=seed, runs=runs)
    yield tricks(world, seed=seed, runs=runs // 10)
    yield flips(world, seed=seed, sealed=False, whole=100)
    yield accidents(world, seed=seed, runs=runs // 20)
