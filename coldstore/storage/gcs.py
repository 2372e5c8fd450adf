"""Objects in a Google Cloud Storage bucket.

Refuses to overwrite in `create`, whatever fails on the way. gcsfs lends its credentials, event loop and connections; requests of the JSON
interface are made here, because gcsfs decides by the words of an error what a status means, and its file objects publish half an object
when a `with` block fails.

A new object that fits into one chunk (8 MiB): one multipart request with `ifGenerationMatch=0`. A larger one:

1. a resumable session is begun with `ifGenerationMatch=0`;
2. chunks are sent one after the other, each behind the caller's back while the next is filled: memory is bounded by two chunks;
3. the last chunk carries the total size and so publishes the object. Whatever fails before that cancels the session.

Every object carries a nonce in its metadata. When the store says "exists already", or its answer to the last step is lost, the object is
looked at: with our nonce it is ours, from the attempt whose reply we never saw.

Locks (`retain`) are a field of the object, so they go with the request that begins it. A delete of a locked object is refused by Google,
unless the bucket keeps versions: there it makes the object noncurrent, which hides it. So the bucket is asked once, before the first
delete, whether it retains objects or keeps versions; where it does, or will not say, each object is looked at first, and one that shows a
lock is deleted by its generation, which the store refuses while the lock lasts.

Refuses zonal (Rapid) buckets, which do not speak this interface.
"""

from __future__ import annotations

import asyncio
import builtins
import concurrent.futures
import contextlib
import functools
import json
import os
import re
import sys
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar, cast
from urllib.parse import quote

from coldstore.errors import (
    AccessDenied,
    BucketMissing,
    ConfigError,
    ObjectExists,
    ObjectLocked,
    ObjectMissing,
    RetentionRefused,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from coldstore.storage.shared import (
    NONCE,
    Bytes,
    check_folder,
    check_prefix,
    check_range,
    flat,
    known_options,
    new_nonce,
    pause_before,
    root_prefix,
    usable_key,
)
from coldstore.storage.store import ObjectInfo, Retention

T = TypeVar("T")

CHUNK_SIZE = 8 * 2**20
# Google takes the chunks of a session in multiples of this only.
CHUNK_UNIT = 256 * 2**10

OPTIONS = frozenset({"object", "chunk_size", "attempts", "connect_timeout", "read_timeout", "token", "project", "kms_key"})
OBJECT_SETTINGS = frozenset({"cacheControl", "contentType", "customTime", "eventBasedHold", "metadata", "storageClass", "temporaryHold"})
# Google lets nobody overwrite what is held, and pointers move.
_HOLDS = frozenset({"eventBasedHold", "temporaryHold"})
_MODES = {"governance": "Unlocked", "compliance": "Locked"}
_ABOUT_LOCKS = re.compile(r"retention|under active .*hold", re.IGNORECASE)

_WORTH_REPEATING = {408, 429, 500, 502, 503, 504}


class GcsStore:
    """A `Store` below `bucket/prefix`.

    Credentials are found the way Google's own tools find them; an `endpoint_url` is an emulator and is spoken to without any. Options:
    `object` (fields of every new object: `storageClass`, `metadata`, …), `kms_key`, `chunk_size`, `attempts`, `connect_timeout`,
    `read_timeout`, `project`, and `token` as gcsfs understands it.
    """

    def __init__(
        self, bucket: str, prefix: str = "", *, endpoint_url: str | None = None, options: Mapping[str, object] | None = None
    ) -> None:
        given = known_options(options, allowed=OPTIONS, scheme="gs")
        self.bucket = bucket
        self._url = f"gs://{bucket}/{prefix.strip('/')}".rstrip("/")
        self._prefix = root_prefix(prefix, url=self._url)
        self.chunk_size = int(cast("int", given.get("chunk_size", CHUNK_SIZE)))
        if self.chunk_size < CHUNK_UNIT or self.chunk_size % CHUNK_UNIT:
            raise ConfigError("A gs store needs a chunk_size that is a multiple of 256 KiB")
        self.settings = _object_settings(given.get("object"))
        self.kms: dict[str, str] = {"kmsKeyName": str(given["kms_key"])} if given.get("kms_key") else {}
        self.client = _Client(url=self._url, endpoint_url=endpoint_url, given=given)

    @property
    def url(self) -> str:
        return self._url

    def path(self, key: str) -> str:
        return f"gs://{self.bucket}/{self.name(key)}"

    def name(self, key: str) -> str:
        """The object's whole name in the bucket."""
        return self._prefix + usable_key(key)

    @property
    def enforces_retention(self) -> bool:
        return True

    def create(self, key: str, *, retain: Retention | None = None) -> _Writer:
        return _Writer(self, key, retain=retain)

    def replace(self, key: str, data: bytes) -> None:
        resource = {k: v for k, v in self.resource(self.name(key), metadata={}).items() if k not in _HOLDS}
        self.client.run(self.upload(resource, data, params=self.kms, op="replace", key=key)).result()

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        check_range(start, length)
        if length == 0:
            self.stat(key)
            return b""
        wanted = {} if start == 0 and length is None else {"Range": f"bytes={start}-{'' if length is None else start + length - 1}"}
        answer = self.client.call(
            "GET",
            self._object_url(key, "download/storage"),
            op="read",
            key=key,
            params={"alt": "media"},
            headers=wanted,
            expect={200, 206, 416},
        )
        if answer.status == 416:
            return b""
        if wanted and answer.status == 200:
            return answer.body[start:] if length is None else answer.body[start : start + length]
        return answer.body

    def stat(self, key: str) -> ObjectInfo:
        return ObjectInfo(key, int(self.fields(key).get("size", 0)))

    def fields(self, key: str) -> dict[str, Any]:
        """What the store says about an object: its size, metadata, generation."""
        return self.client.call("GET", self._object_url(key), op="stat", key=key).json()

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        found = [
            ObjectInfo(name, int(entry.get("size", 0)))
            for page in self._pages(prefix, fields="items(name,size),nextPageToken")
            for entry in page.get("items", ())
            if (name := entry["name"][len(self._prefix) :]) and not name.endswith("/")
        ]
        found.sort(key=lambda o: o.key)
        return iter(found)

    def folders(self, prefix: str = "") -> builtins.list[str]:
        check_folder(prefix)
        skip = len(self._prefix) + len(prefix)
        return sorted(
            {
                name
                for page in self._pages(prefix, delimiter="/", fields="prefixes,nextPageToken")
                for entry in page.get("prefixes", ())
                if (name := entry[skip:].rstrip("/"))
            }
        )

    def delete(self, key: str) -> None:
        with contextlib.suppress(ObjectMissing):
            found = self.fields(key) if self._may_hide else {}
            locked = any(found.get(field) for field in ("retention", *_HOLDS))
            exactly = {"generation": str(found["generation"])} if locked else {}
            self.client.call("DELETE", self._object_url(key), op="delete", key=key, params=exactly)

    def close(self) -> None:
        self.client.close()

    @functools.cached_property
    def _may_hide(self) -> bool:
        """Whether a plain delete could make a locked object noncurrent; also where we may not know."""
        url = f"{self.client.base}/storage/v1/b/{quote(self.bucket, safe='')}"
        try:
            bucket = self.client.call("GET", url, op="list", key=None, params={"fields": "objectRetention,versioning"}).json()
        except AccessDenied:
            return True
        return bool(bucket.get("objectRetention") or bucket.get("versioning", {}).get("enabled"))

    async def upload(self, resource: dict[str, Any], data: Bytes, *, params: Mapping[str, str], op: str, key: str) -> None:
        """One request with everything in it."""
        # A boundary that is drawn anew cannot occur in the data by design or by accident.
        boundary = new_nonce()
        head = (
            f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{json.dumps(resource)}\r\n"
            f"--{boundary}\r\nContent-Type: {self._content_type}\r\n\r\n"
        )
        body = b"".join((head.encode(), data, f"\r\n--{boundary}--\r\n".encode()))
        await self.client.acall(
            "POST",
            self.upload_url,
            op=op,
            key=key,
            params={"uploadType": "multipart", **params},
            headers={"Content-Type": f"multipart/related; boundary={boundary}"},
            data=body,
        )

    async def begin(self, resource: dict[str, Any], *, params: Mapping[str, str], key: str) -> str:
        """Open a resumable session; its address."""
        answer = await self.client.acall(
            "POST",
            self.upload_url,
            op="create",
            key=key,
            params={"uploadType": "resumable", "name": resource["name"], **params},
            headers={"Content-Type": "application/json; charset=UTF-8", "X-Upload-Content-Type": self._content_type},
            data=json.dumps(resource).encode(),
        )
        return str(answer.headers["Location"])

    def resource(self, name: str, *, metadata: Mapping[str, str], retain: Retention | None = None) -> dict[str, Any]:
        """The fields of a new object."""
        lock = {"retention": {"mode": _MODES[retain.mode], "retainUntilTime": f"{retain.until:%Y-%m-%dT%H:%M:%SZ}"}} if retain else {}
        mine = {"name": name, "metadata": {**self.settings.get("metadata", {}), **metadata}, **lock}
        return {"contentType": self._content_type, **self.settings, **mine}

    @property
    def creating(self) -> dict[str, str]:
        """The parameters of a request that makes a new object, and overwrites none."""
        return {**self.kms, "ifGenerationMatch": "0"}

    @property
    def upload_url(self) -> str:
        return f"{self.client.base}/upload/storage/v1/b/{quote(self.bucket, safe='')}/o"

    @property
    def _content_type(self) -> str:
        return str(self.settings.get("contentType", "application/octet-stream"))

    def _object_url(self, key: str, service: str = "storage") -> str:
        return f"{self.client.base}/{service}/v1/b/{quote(self.bucket, safe='')}/o/{quote(self.name(key), safe='')}"

    def _pages(self, prefix: str, **more: str) -> Iterator[dict[str, Any]]:
        token: dict[str, str] = {}
        url = f"{self.client.base}/storage/v1/b/{quote(self.bucket, safe='')}/o"
        while True:
            page = self.client.call("GET", url, op="list", key=None, params={"prefix": self._prefix + prefix, **more, **token}).json()
            yield page
            if not page.get("nextPageToken"):
                return
            token = {"pageToken": str(page["nextPageToken"])}


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        return cast("dict[str, Any]", json.loads(self.body))


class _Client:
    """Requests on fsspec's event loop with gcsfs's credentials: made, repeated where that can help, their errors translated."""

    def __init__(self, *, url: str, endpoint_url: str | None, given: dict[str, object]) -> None:
        self._url = url
        self.attempts = max(1, int(cast("int", given.get("attempts", 5))))
        token = given.get("token")
        endpoint_url = endpoint_url or _emulator()
        if endpoint_url:
            # Without this, importing gcsfs brings up gRPC, which waits a minute for an emulator that does not speak it.
            os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
            token = token or "anon"
        import aiohttp
        from gcsfs.core import GCSFileSystem

        try:
            self._fs = GCSFileSystem(
                token=token,
                **({"project": given["project"]} if given.get("project") else {}),
                endpoint_url=endpoint_url.rstrip("/") if endpoint_url else None,
                use_listings_cache=False,
                skip_instance_cache=True,
            )
        except Exception as exc:
            # Credentials are looked for when the file system is made, and each place to find them fails in its own way.
            raise _no_credentials(url, op="open", key=None) from exc
        self._timeout = aiohttp.ClientTimeout(
            total=None,
            sock_connect=cast("float", given.get("connect_timeout", 5)),
            sock_read=cast("float", given.get("read_timeout", 60)),
        )

    @property
    def base(self) -> str:
        return str(self._fs._location)  # noqa: SLF001 - the only place that knows about universes and client certificates

    @property
    def running(self) -> bool:
        return bool(self._fs.loop.is_running())

    def run(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._fs.loop)

    def call(self, method: str, url: str, *, op: str, key: str | None, **request: Any) -> _Answer:
        return self.run(self.acall(method, url, op=op, key=key, **request)).result()

    async def acall(self, method: str, url: str, *, op: str, key: str | None, expect: set[int] | None = None, **request: Any) -> _Answer:
        expect = expect or {200, 201, 204, 308}
        for attempt in range(1, self.attempts + 1):
            last = attempt == self.attempts
            try:
                answer = await self._once(method, url, **request)
            except Exception as exc:
                if last or not _worth_repeating(exc):
                    raise _translate(exc, op=op, key=key, url=self._url) from exc
            else:
                if answer.status in expect:
                    return answer
                if last or answer.status not in _WORTH_REPEATING:
                    raise _translate_answer(answer, op=op, key=key, url=self._url)
            await asyncio.sleep(pause_before(attempt))
        raise AssertionError("unreachable")

    async def _once(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        data: Bytes | None = None,
    ) -> _Answer:
        import yarl

        session = await self._fs._set_session()  # noqa: SLF001 - gcsfs opens its session on first use
        # The address is quoted already; a second pass would turn %2F into a folder and %25 into a percent sign.
        target = yarl.URL(url, encoded=True)
        if params:
            target = target.extend_query(params)
        async with session.request(
            method,
            target,
            headers=self._fs._get_headers(headers),  # noqa: SLF001 - adds the credentials, renewed where they ran out
            data=data,
            timeout=self._timeout,
            allow_redirects=False,
        ) as reply:
            return _Answer(reply.status, reply.headers, await reply.read())

    def close(self) -> None:
        session = self._fs._session  # noqa: SLF001
        if session is not None and self.running:
            self._fs._session = None  # noqa: SLF001 - a later call opens a new one
            self.run(session.close()).result(timeout=5)


class _Session:
    """A resumable upload on its way. Lives apart from the writer, so that it can be cancelled after the writer is gone."""

    def __init__(self, client: _Client, *, key: str, address: str) -> None:
        self._client, self._key, self._address = client, key, address
        self._flying: concurrent.futures.Future[None] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._sent = 0

    def send(self, chunk: bytearray, *, last: bool = False) -> None:
        """Begin to send one chunk, after the one before has arrived; with `last`, wait for this one too."""
        self.wait()
        start, self._sent = self._sent, self._sent + len(chunk)
        self._flying = self._client.run(self._send(chunk, start=start, last=last))
        if last:
            self.wait()

    def wait(self) -> None:
        flying, self._flying = self._flying, None
        if flying is not None:
            flying.result()

    async def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        with contextlib.suppress(StoreError):
            # Google answers a cancelled session with 499.
            await self._client.acall(
                "DELETE", self._address, op="create", key=self._key, headers={"Content-Length": "0"}, expect={200, 204, 404, 410, 499}
            )

    async def _send(self, chunk: bytearray, *, start: int, last: bool) -> None:
        self._task = asyncio.current_task()
        view, end = memoryview(chunk), start + len(chunk)
        while True:
            spread = f"bytes {end - len(view)}-{end - 1}/{end if last else '*'}" if chunk else f"bytes */{end}"
            answer = await self._client.acall(
                "PUT", self._address, op="create", key=self._key, headers={"Content-Range": spread}, data=view
            )
            if answer.status != 308:
                return
            # The store may have kept a part of the chunk only; it says how much, and wants the rest.
            kept = int(answer.headers["Range"].rpartition("-")[2]) + 1 if "Range" in answer.headers else 0
            if kept == end and not last:
                return
            if not end - len(view) < kept < end:
                raise StoreUnavailable(f"The store kept {kept} bytes of the {end} sent to it", op="create", key=self._key)
            view = view[kept - end :]


class _Writer:
    """An object in the making. Bytes are copied out of the caller's buffer before `write` returns."""

    def __init__(self, store: GcsStore, key: str, *, retain: Retention | None) -> None:
        self._store, self._key = store, key
        self._nonce = new_nonce()
        self._resource = store.resource(store.name(key), metadata={NONCE: self._nonce}, retain=retain)
        self._buffer = bytearray()
        self._session: _Session | None = None
        self._open = False
        self._failed = False

    def __enter__(self) -> Self:
        self._open = True
        return self

    def write(self, data: Bytes) -> None:
        if not self._open:
            raise ValueError("the object is not open for writing")
        view = flat(data)
        try:
            while view:
                if len(self._buffer) == self._store.chunk_size:
                    chunk, self._buffer = self._buffer, bytearray()
                    (self._session or self._begin()).send(chunk)
                room = self._store.chunk_size - len(self._buffer)
                self._buffer += view[:room]
                view = view[room:]
        except BaseException:
            self._failed = True
            raise

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._open = False
        try:
            if kind is None:
                self._publish()
        finally:
            session, self._session = self._session, None
            if session is not None:
                self._store.client.run(session.cancel()).result()
            self._buffer = bytearray()

    def __del__(self) -> None:
        # Garbage is collected on any thread, the event loop's own among them: ask for the cancellation and do not wait for it.
        session = getattr(self, "_session", None)
        if session is not None and not sys.is_finalizing() and self._store.client.running:
            self._store.client.run(session.cancel())

    def _begin(self) -> _Session:
        client = self._store.client
        address = client.run(self._store.begin(self._resource, params=self._store.creating, key=self._key)).result()
        self._session = _Session(client, key=self._key, address=address)
        return self._session

    def _publish(self) -> None:
        if self._failed:
            raise StoreError(f"{self._key!r} was not written: an earlier write had failed", op="create", key=self._key)
        try:
            if self._session is None:
                work = self._store.upload(self._resource, self._buffer, params=self._store.creating, op="create", key=self._key)
                self._store.client.run(work).result()
            else:
                self._session.send(self._buffer, last=True)
        except StoreError as exc:
            if not self._is_ours(exc):
                raise
        self._session = None

    def _is_ours(self, refused: StoreError) -> bool:
        try:
            return bool(self._store.fields(self._key).get("metadata", {}).get(NONCE) == self._nonce)
        except (ObjectMissing, AccessDenied):
            return False
        except StoreError as exc:
            if not isinstance(refused, ObjectExists):
                return False
            # Called a conflict, it would have the caller clear away what may be its own.
            raise StoreUnavailable(
                f"Could not find out whether {self._key!r} was written: {exc}", hint="Run it again.", op="create", key=self._key
            ) from exc


def _emulator() -> str | None:
    """The emulator that Google's own clients would use."""
    host = os.environ.get("STORAGE_EMULATOR_HOST", "")
    if host in {"", "default"}:
        return None
    return host if "://" in host else f"http://{host}"


def _object_settings(given: object) -> dict[str, Any]:
    settings = dict(cast("Mapping[str, Any]", given or {}))
    if unknown := sorted(set(settings) - OBJECT_SETTINGS):
        raise ConfigError(
            f"Unknown object setting for a gs store: {', '.join(unknown)}",
            hint=f"Known: {', '.join(sorted(OBJECT_SETTINGS))}. Retention is set by retain_days and retain_mode.",
        )
    return settings


def _worth_repeating(exc: Exception) -> bool:
    import aiohttp
    from google.auth.exceptions import TransportError

    return isinstance(exc, aiohttp.ClientError | asyncio.TimeoutError | ConnectionError | TransportError)


def _translate(exc: Exception, *, op: str, key: str | None, url: str) -> StoreError:
    """The one place where an error of aiohttp or google-auth becomes ours."""
    from google.auth.exceptions import GoogleAuthError, TransportError

    what = f"{op} {key!r} in {url}" if key is not None else f"{op} {url}"
    if isinstance(exc, GoogleAuthError) and not isinstance(exc, TransportError):
        return _no_credentials(url, op=op, key=key)
    return StoreUnavailable(
        f"Could not {what}: {exc or type(exc).__name__}",
        hint="Check the endpoint and the network, then run it again.",
        op=op,
        key=key,
    )


def _no_credentials(url: str, *, op: str, key: str | None) -> AccessDenied:
    return AccessDenied(
        f"There are no usable credentials for {url}",
        hint="Set GOOGLE_APPLICATION_CREDENTIALS, or log in with `gcloud auth application-default login`.",
        op=op,
        key=key,
    )


def _translate_answer(answer: _Answer, *, op: str, key: str | None, url: str) -> StoreError:  # noqa: PLR0911 - a table in code
    status, said = answer.status, _message(answer.body)
    what = f"{op} {key!r} in {url}" if key is not None else f"{op} {url}"
    where: dict[str, Any] = {"op": op, "key": key}
    if op == "create" and status in {400, 412} and _ABOUT_LOCKS.search(said):
        return RetentionRefused(
            f"{url} does not lock what is written to it: {status} {said}",
            hint="Use a bucket made for object retention (docs/how-to/immutability.md), or leave retain_days out.",
            **where,
        )
    if op in {"delete", "replace"} and status == 403 and _ABOUT_LOCKS.search(said):
        return ObjectLocked(f"{key!r} in {url} is locked, and the store did not {op} it: {said}", **where)
    if status == 404 and (op in {"create", "replace", "list"} or "bucket does not exist" in said.lower()):
        return BucketMissing(f"There is no bucket for {url}", hint="Make the bucket first, or correct its name.", **where)
    if status == 404:
        return ObjectMissing(f"There is no object {key!r} in {url}", **where)
    if status == 412:
        return ObjectExists(f"{key!r} is there already in {url}", **where)
    if status in {401, 403}:
        return AccessDenied(f"May not {what}: {status} {said}".rstrip(), hint="Check the credentials and the bucket's policy.", **where)
    if status == 507:
        return StoreFull(f"No room to {what}: {status} {said}".rstrip(), **where)
    if status in _WORTH_REPEATING:
        return StoreUnavailable(f"Could not {what}, and gave up after several attempts: {status} {said}".rstrip(), **where)
    return StoreError(f"Could not {what}: {status} {said}".rstrip(), **where)


def _message(body: bytes) -> str:
    text = body.decode(errors="replace").strip()
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return text[:200]
