"""A chain made into one full snapshot, from the store alone: the database is not asked, and need not be there.

    links → rows that are left → document lines → frames → codec, seal → store → manifest → pointers

The new snapshot is of the moment of the chain's last link, a millisecond or more later, for that one's id is taken. It is a point to
restore from, and what the old chain can be let go for. An incremental never builds on it: it builds on what the database itself remembers
as its last one. Rows stream through; what is held is the keys that the incrementals name.

Refuses a suspect snapshot: its copy would be none.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from itertools import chain as chained

import msgspec

from coldstore import __version__
from coldstore.catalog import Heads, rfc3339
from coldstore.chained import ChainDocument
from coldstore.codec.digest import format_digest
from coldstore.codec.pipeline import ordered_map
from coldstore.commit import Draft, Tally, WriteOptions
from coldstore.document import model
from coldstore.document.writer import DocumentWriter, PlainFrame, RowBatch, batches
from coldstore.documents import Part
from coldstore.errors import ChainRefused, ContentMismatch
from coldstore.progress import Progress, silent
from coldstore.storage import layout
from coldstore.storage.store import Store

_READERS = 2


def compact(
    store: Store, chain: ChainDocument, *, label: str | None = None, options: WriteOptions | None = None, progress: Progress = silent
) -> model.Manifest:
    """What `chain` comes to as a full snapshot of its own. Raises `ContentMismatch` before anything is committed where that is not what
    its last link claims."""
    if chain.manifest.suspect is not None:
        raise ChainRefused(f"{chain.name} is suspect: {chain.manifest.suspect}", hint="Compact one from before it.")
    options = replace(options or WriteOptions(), accept=True)  # it holds what was looked at when it was taken
    timestamp = layout.parse_id(chain.name)[1] + 1
    header = msgspec.structs.replace(
        as_full(chain),
        id=layout.snapshot_id(chain.scope, timestamp),
        snapshot_at=rfc3339(timestamp),
        label=label,
        generator=f"coldstore {__version__}",
    )
    draft = Draft(
        store,
        header,
        timestamp,
        [(t.tier, t.array) for t in chain.schema.tables],
        options,
        time.monotonic(),
        Heads(store),
        lambda tally: _compare(chain, tally),
        built_from=chain.name,
    )
    return draft.publish(lambda tally: frames(chain, tally, frame_size=options.frame_size, progress=progress))


def as_full(chain: ChainDocument) -> model.Header:
    """The header of a full snapshot of the chain's moment, under its own name."""
    of = chain.manifest
    return model.Header(
        format=of.format,
        snapshot_at=of.snapshot_at,
        uid=of.uid,
        workspace=of.workspace,
        id=of.id,
        kind="full",
        label=of.label,
        generator=of.generator,
        database=of.database,
        schema=of.schema,
    )


def frames(chain: ChainDocument, tally: Tally, *, frame_size: int, progress: Progress = silent) -> Generator[PlainFrame]:
    """The document after its header."""
    document = DocumentWriter([t.array for t in chain.schema.tables], frame_size=frame_size)
    for number, table in enumerate(chain.schema.tables):
        progress.start(table.tier)
        document.open()
        with closing(_batches(chain.parts([table.array]), frame_size)) as found:
            for batch in found:
                tally.add(number, batch)
                progress.advance(rows=batch.rows, size=len(batch.body))
                if frame := document.rows(batch):
                    yield frame
        yield document.close()


def plain_chunks(chain: ChainDocument) -> Generator[bytes]:
    """The chain as the plain document of a full snapshot, piece by piece."""
    tally = Tally.of(len(chain.schema.tables))
    first = DocumentWriter([], frame_size=0).header(as_full(chain))
    for frame in chained([first], frames(chain, tally, frame_size=WriteOptions().frame_size)):
        yield from frame.pieces
    _compare(chain, tally)


def _batches(parts: Generator[Part], size: int) -> Generator[RowBatch]:
    """Parts are read ahead of the writer, each on a thread of its own."""

    def gathered(part: Part) -> list[RowBatch]:
        return list(batches(map(bytes, part.rows()), size=size))

    with closing(parts), closing(ordered_map(gathered, parts, workers=_READERS)) as found:
        for each in found:
            yield from each


def _compare(chain: ChainDocument, tally: Tally) -> None:
    claimed = {t.array: t for t in chain.tiers or []}
    for number, table in enumerate(chain.schema.tables):
        tier = claimed.get(table.array)
        if tier is not None and (tier.rows, tier.digest) != (tally.rows[number], format_digest(tally.digests[number])):
            raise ContentMismatch(
                f"{chain.name} says that {tier.tier} comes to {tier.rows} rows, and its chain gives {tally.rows[number]}, or other ones",
                hint="Nothing was written. Use another snapshot.",
            )
