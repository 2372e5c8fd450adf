"""Chains in a store as exports leave them there, from rows in memory: a full snapshot, and what changed from state to state."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import msgspec

from coldstore.catalog import Heads, point_latest, rfc3339
from coldstore.codec.compress import Codec
from coldstore.codec.digest import format_digest, row_digest
from coldstore.codec.pipeline import DocumentSums, encode
from coldstore.codec.seal import CIPHER, SUFFIX, DataKey
from coldstore.codec.sign import SigningKey
from coldstore.document import model
from coldstore.document.writer import deletion
from coldstore.keyrings.local import LocalRing
from coldstore.storage import layout
from coldstore.storage.store import Store
from coldstore.tiers import EVERYBODY, Scope
from tests.unit import samples
from tests.unit.stores import FEB_26

FIVE_MINUTES = 300_000

#: array → key → row. Every state of a chain has the same arrays.
State = Mapping[str, Mapping[int, Mapping[str, Any]]]


def dump(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode()


def notes(**texts: str) -> dict[int, dict[str, Any]]:
    """`notes(a1="x")`: a row with the id 1 of the user whose name begins with `a`."""
    return {int(name[1:]): {"id": int(name[1:]), "uid": {"a": "ann", "b": "bob"}[name[0]], "text": text} for name, text in texts.items()}


def table(array: str) -> model.Table:
    plain = samples.table(array)
    return msgspec.structs.replace(plain, columns=[*plain.columns, model.Column(name="text", type="text")])


def lines(state: State) -> dict[str, list[bytes]]:
    return {array: [dump(row) for row in rows.values()] for array, rows in state.items()}


def changes(before: State, after: State, *, resets: Sequence[str] = ()) -> dict[str, list[bytes]]:
    """The arrays of an incremental document."""
    found: dict[str, list[bytes]] = {}
    gone: list[bytes] = []
    for array, rows in after.items():
        old = {} if array in resets else before[array]
        found[array] = [dump(row) for key, row in rows.items() if old.get(key) != row]
        gone += [deletion(array, dump({"id": key})) for key in old if key not in rows]
    return {**found, model.DELETED: gone}


def put(
    store: Store,
    arrays: Mapping[str, Sequence[bytes]],
    *,
    at: int = FEB_26,
    parent: model.Manifest | None = None,
    state: State | None = None,
    scope: Scope = EVERYBODY,
    codec: str = "none",
    rings: tuple[LocalRing, ...] = (),
    signer: SigningKey | None = None,
    schema: model.Schema | None = None,
    resets: Sequence[str] = (),
    frame_size: int = 200,
    **members: Any,
) -> model.Manifest:
    """One snapshot, incremental where it has a parent. `state`: what its manifest claims that the chain comes to."""
    chosen = Codec(codec)
    identity = layout.snapshot_id(scope, at)
    header = samples.header(
        id=identity,
        uid=scope.uid,
        workspace=scope.workspace,
        snapshot_at=rfc3339(at),
        kind=model.INCREMENTAL if parent else "full",
        parent=parent and model.Link(id=parent.id, checksum=parent.checksum),
        resets=list(resets),
        schema=schema or model.Schema(tables=[table(a) for a in arrays if a != model.DELETED]),
    )
    previous = Heads(store).before(scope, at)
    data_key = DataKey.new(identity) if rings else None
    key = layout.document_key(identity, chosen.suffix + (SUFFIX if rings else ""))
    sums = DocumentSums()
    with store.create(key) as out:
        for number, frame in enumerate(samples.plain_frames(header, arrays, frame_size=frame_size)):
            stored = encode(frame, chosen, data_key, number=number)
            for piece in stored.pieces:
                out.write(piece)
            sums.add(stored)

    def masked(digest: str, name: str) -> str:
        return data_key.mask(digest, name) if data_key else digest

    def summaries(tables: Mapping[str, Sequence[bytes]], what: str) -> list[model.TierSummary]:
        return [
            model.TierSummary(tier=n, array=n, rows=len(rows), digest=masked(format_digest(sum(map(row_digest, rows))), f"{what} {n}"))
            for n, rows in tables.items()
        ]

    made = samples.manifest(
        header,
        document=key,
        codec=codec,
        bytes=sums.plain_bytes,
        stored_bytes=sums.stored_bytes,
        sha256=sums.stored_sha256,
        plain_sha256=masked(sums.plain_sha256, "plainSha256"),
        tiers=summaries(arrays, "digest"),
        state=None if state is None or parent is None else summaries(lines(state), "state"),
        frames=sums.frames,
        seconds=0.001,
        previous=previous,
        sealing=data_key
        and model.Sealing(
            cipher=CIPHER,
            nonce=data_key.nonce.hex(),
            check=data_key.check,
            keys=[r.wrap(data_key.secret, context=identity) for r in rings],
        ),
    )
    made = model.complete(msgspec.structs.replace(made, **members), signer=signer)
    with store.create(layout.manifest_key(identity)) as out:
        out.write(model.encode_manifest(made))
    point_latest(store, made)
    return made


def grow(
    store: Store,
    states: Sequence[State],
    *,
    at: int = FEB_26,
    claimed: bool = True,
    resets: Mapping[int, Sequence[str]] | None = None,
    **more: Any,
) -> list[model.Manifest]:
    """A chain through `states`, five minutes apart. `claimed`: whether the incrementals say what they come to. `resets`: number of a state
    → arrays that were truncated before it."""
    made = [put(store, lines(states[0]), at=at, **more)]
    for number, (before, after) in enumerate(pairwise(states), 1):
        emptied = (resets or {}).get(number, ())
        document = changes(before, after, resets=emptied)
        state = after if claimed else None
        made.append(put(store, document, at=at + number * FIVE_MINUTES, parent=made[-1], state=state, resets=emptied, **more))
    return made
