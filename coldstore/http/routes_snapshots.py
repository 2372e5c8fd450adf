"""Snapshots: the list, one of them, its document, and its deletion.

A document is sent frame by frame: each is fetched, compared with its sums, opened and decompressed while the one before it is on its way,
and of a part that is asked for only the frames that it touches. What is wrong with the first one is a problem; what is wrong with a later
one ends the connection, for the status is sent by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import quote

import msgspec
from fastapi import APIRouter, Header, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from coldstore.app import ColdStore
from coldstore.catalog import SnapshotInfo
from coldstore.document import model
from coldstore.documents import StoredDocument
from coldstore.errors import ColdStoreError, ObjectLocked
from coldstore.http import ranges
from coldstore.http.problems import Problem
from coldstore.http.schemas import Manifest, SnapshotId, SnapshotPage, SnapshotQuery
from coldstore.http.service import Here
from coldstore.storage import layout

router = APIRouter(tags=["snapshots"])

_TAGGED = {"headers": {"ETag": {"schema": {"type": "string"}, "description": "The SHA-256 of these bytes."}}}
_BYTES: dict[str, Any] = {
    "application/json": {"schema": {}},
    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
}
_DOCUMENT: dict[int | str, dict[str, Any]] = {
    200: {"description": "All of it.", "content": _BYTES, **_TAGGED},
    206: {"description": "The part that was asked for.", "content": _BYTES, **_TAGGED},
    304: {"description": "The client has it."},
    416: {"description": "It ends before that part begins."},
}


# --- the list ----------------------------------------------------------------------------------------------------------------------


@router.get("/snapshots", response_model=None, responses={200: {"model": SnapshotPage}})
def page(here: Here, request: Request, asked: Annotated[SnapshotQuery, Query()]) -> Response:
    """Snapshots, newest first, a page at a time. One whose manifest cannot be read stands there with what is wrong with it."""
    entries = here.cold().list_snapshots(
        uid=asked.uid,
        workspace=asked.workspace,
        everybody=asked.everybody,
        date=asked.date,
        label=asked.label,
        kind=asked.kind,
        before=asked.cursor,
        limit=asked.limit + 1,
    )
    found = [_told(entry) for entry in entries]
    told, more = found[: asked.limit], len(found) > asked.limit
    following = str(request.url.include_query_params(cursor=told[-1]["id"]).replace(scheme="", netloc="")) if more else None
    headers = {"Link": f'<{following}>; rel="next"'} if following else {}
    return Response(msgspec.json.encode({"snapshots": told, "next": following}), 200, headers, "application/json")


def _told(entry: SnapshotInfo | ColdStoreError) -> dict[str, Any]:
    if isinstance(entry, SnapshotInfo):
        return entry.as_dict()
    key = layout.parse_key(entry.key or "")
    if key is None:  # it is the store that failed, and no one snapshot
        raise entry
    return {"id": key.id, "error": entry.code, "message": str(entry)}


# --- one of them -------------------------------------------------------------------------------------------------------------------


@router.get("/snapshots/{snapshot_id}", response_model=None, responses={200: {"model": Manifest}})
def show(here: Here, snapshot_id: SnapshotId) -> Response:
    """Everything that the manifest says, as `coldstore show --json` has it."""
    return Response(msgspec.json.encode(here.cold().manifest(snapshot_id)), media_type="application/json")


@router.delete("/snapshots/{snapshot_id}", status_code=204)
def delete(here: Here, snapshot_id: SnapshotId) -> None:
    """Delete it for ever, and leave a record of that. One that must still be kept is refused with its date."""
    cold = here.cold()
    manifest = cold.manifest(snapshot_id)
    try:
        cold.delete([snapshot_id])
    except ObjectLocked as exc:
        until = {"retainedUntil": manifest.retained.until} if manifest.retained else {}
        raise Problem(409, exc.code, str(exc), hint=exc.hint, more=until) from exc


# --- its document ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Form:
    """How a document is sent: its name, what its bytes are, and where the pieces come from."""

    name: str
    media_type: str
    tag: str
    lengths: list[int]
    frame: Callable[[int], bytes]

    @property
    def size(self) -> int:
        return sum(self.lengths)

    @classmethod
    def plain(cls, cold: ColdStore, snapshot: str) -> _Form:
        document = cold.stored_document(snapshot)
        lengths = [f.plain for f in document.manifest.frames]
        return cls(f"{snapshot}.json", "application/json", ranges.entity_tag(document.plain_sha256), lengths, document.frame)

    @classmethod
    def stored(cls, cold: ColdStore, snapshot: str) -> _Form:
        """For which nobody needs to open it."""
        manifest: model.Manifest = cold.manifest(snapshot)
        cold.trust().check(manifest.signature, what=manifest.id)
        document = StoredDocument(cold.store, manifest)
        name = manifest.document.rpartition("/")[2]
        media_type = "application/json" if name.endswith(".json") else "application/octet-stream"
        return cls(name, media_type, ranges.entity_tag(manifest.sha256), [f.length for f in manifest.frames], document.stored_frame)

    def headers(self) -> dict[str, str]:
        return {
            "ETag": self.tag,
            "Accept-Ranges": "bytes",
            "Cache-Control": "private, no-cache",
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(self.name, safe='')}",
        }


FormName = Annotated[
    Literal["plain", "stored"], Query(description="plain: decoded JSON. stored: the bytes as they lie in the store, compressed and sealed.")
]
ByteRange = Annotated[str | None, Header(alias="Range", description="`bytes=0-1023`; of several ranges at once the whole is the answer.")]
IfRange = Annotated[str | None, Header(description="The `ETag` that the range is of; when it is another now, the whole is sent.")]
IfNoneMatch = Annotated[str | None, Header(description="`ETag` values that the client has.")]


@router.get("/snapshots/{snapshot_id}/document", response_model=None, responses=_DOCUMENT)
def read(
    here: Here,
    snapshot_id: SnapshotId,
    form: FormName = "plain",
    byte_range: ByteRange = None,
    if_range: IfRange = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """The document, or a part of it."""
    found = _form(here, snapshot_id, form)
    headers = found.headers()
    if ranges.is_known(if_none_match, found.tag):
        return Response(None, 304, headers)
    try:
        span = ranges.wanted(byte_range, if_range, tag=found.tag, size=found.size)
    except ranges.Unsatisfiable:
        told = {"Content-Range": f"bytes */{found.size}"}
        raise Problem(416, "RangeNotSatisfiable", f"the document has {found.size} bytes", headers=told) from None
    whole = span or ranges.Span(0, found.size, found.size)
    headers |= {"Content-Length": str(whole.length)} | ({"Content-Range": span.content_range} if span else {})
    works = ranges.pieces(found.lengths, whole, found.frame)
    return StreamingResponse(_sent(next(works)(), works), 206 if span else 200, headers, found.media_type)


@router.head("/snapshots/{snapshot_id}/document", response_model=None, responses=_DOCUMENT)
def head(here: Here, snapshot_id: SnapshotId, form: FormName = "plain", if_none_match: IfNoneMatch = None) -> Response:
    """What `GET` would say of the whole document."""
    found = _form(here, snapshot_id, form)
    if ranges.is_known(if_none_match, found.tag):
        return Response(None, 304, found.headers())
    return Response(None, 200, found.headers() | {"Content-Length": str(found.size)}, found.media_type)


def _form(here: Here, snapshot: str, form: str) -> _Form:
    return (_Form.plain if form == "plain" else _Form.stored)(here.cold(), snapshot)


async def _sent(first: bytes, works: Iterator[Callable[[], bytes]]) -> AsyncIterator[bytes]:
    """The pieces, one of them being made while another is sent. Left early, it makes no more."""
    piece = first
    for work in works:
        following = asyncio.ensure_future(run_in_threadpool(work))
        try:
            yield piece
            piece = await following
        finally:
            following.cancel()
    yield piece
