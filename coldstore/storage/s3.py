"""Objects in an S3 bucket, or in one of its look-alikes.

Refuses to overwrite in `create`, whatever fails on the way. s3fs lends its client (credentials, event loop, connections) and nothing else:
its file objects publish half an object when a `with` block fails, or when they are collected as garbage.

A new object that fits into one part (8 MiB unless `part_size` says otherwise):
1. it is collected in memory;
2. one conditional PUT (`If-None-Match: *`) publishes it.

A larger one:
1. a multipart upload is begun when the first part is full and more comes;
2. parts of equal size are sent side by side, at most `parallel` of them in flight: `write` waits for a free place, so memory is bounded by
   `(parallel + 1) * part_size`;
3. the last part is sent, and all are waited for;
4. one conditional CompleteMultipartUpload publishes it. Whatever fails before that aborts the upload.

Both kinds carry a nonce in their metadata. When the store says "exists already", or its answer to the last step is lost, the object is
looked at: with our nonce it is ours, from the attempt whose reply we never saw. A process killed between 1 and 4 leaves an upload that no
listing shows; `sweep`, or a lifecycle rule of the bucket (`AbortIncompleteMultipartUpload`), removes those.

Locks (`retain`) go with the PUT, or with the request that begins the upload. A bucket with Object Lock keeps versions, and there a plain
DELETE of a locked object succeeds: it lays a marker over it. So whether the bucket has Object Lock is asked once, before the first delete.
Where it has none, a delete is the one plain request. Where it has, the object is looked at first; what `create` made is deleted as the
version that it is, which the store refuses while the lock lasts and which leaves nothing behind afterwards. Pointers get the marker, for
their older versions must not come back to light. Who may not ask about the bucket is told by the lock that the object shows.
"""

from __future__ import annotations

import asyncio
import base64
import builtins
import concurrent.futures
import contextlib
import functools
import hashlib
import re
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from coldstore.errors import (
    AccessDenied,
    BucketMissing,
    ConfigError,
    InvalidKey,
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

PART_SIZE = 8 * 2**20
SMALLEST_PART = 5 * 2**20
MOST_PARTS = 10_000

OPTIONS = frozenset({"object", "part_size", "parallel", "attempts", "connect_timeout", "read_timeout", "key", "secret", "token", "profile"})
OBJECT_SETTINGS = frozenset(
    {
        "ACL",
        "BucketKeyEnabled",
        "CacheControl",
        "ChecksumAlgorithm",
        "ContentType",
        "ExpectedBucketOwner",
        "Metadata",
        "ObjectLockLegalHoldStatus",
        "RequestPayer",
        "SSEKMSEncryptionContext",
        "SSEKMSKeyId",
        "ServerSideEncryption",
        "StorageClass",
        "Tagging",
    }
)

# A pointer that moves would leave a held version at each step.
_HOLD = "ObjectLockLegalHoldStatus"
# Stores agree on neither code nor wording for "locked" and "no locks here". Some say no more than that they do not like the request: then
# it is the lock in it that they mean.
_VAGUE = {"InvalidArgument", "InvalidRequest", "NotImplemented"}
_ABOUT_LOCKS = re.compile(r"object.?lock|retention|retain.?until|WORM", re.IGNORECASE)
_MISSING = {"NoSuchKey", "NoSuchVersion", "NoSuchUpload", "404"}
_DENIED = {
    "AccessDenied",
    "AllAccessDisabled",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "403",
    "401",
}
_CONFLICT = {"PreconditionFailed", "ConditionalRequestConflict", "OperationAborted", "412", "409"}
_FULL = {"InsufficientStorage", "QuotaExceeded", "StorageFull", "XMinioStorageFull", "507"}
_ELSEWHERE = {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "301", "307"}


class S3Store:
    """A `Store` below `bucket/prefix`.

    `checksums="when_required"` is for look-alikes that do not know the checksums newer clients add by themselves; `path_style` forces
    (True) or forbids (False) the bucket's name in the path instead of the host's name. None leaves it to the client: path style where
    an `endpoint_url` is given. Options: `object` (settings sent with every new object: `ServerSideEncryption`, `StorageClass`,
    `Tagging`, …), `part_size`, `parallel`, `attempts`, `connect_timeout`, `read_timeout`, and `key`, `secret`, `token` or
    `profile` for credentials that are not to be found the way boto finds them.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        region: str | None = None,
        endpoint_url: str | None = None,
        path_style: bool | None = None,
        checksums: str = "when_supported",
        options: Mapping[str, object] | None = None,
    ) -> None:
        given = known_options(options, allowed=OPTIONS, scheme="s3")
        self.bucket = bucket
        self._url = f"s3://{bucket}/{prefix.strip('/')}".rstrip("/")
        self._prefix = root_prefix(prefix, url=self._url)
        self.part_size = int(cast("int", given.get("part_size", PART_SIZE)))
        self.parallel = int(cast("int", given.get("parallel", 8)))
        if self.part_size < SMALLEST_PART or self.parallel < 1:
            raise ConfigError("An S3 store needs a part_size of at least 5 MiB (S3's own minimum) and at least one part in parallel")
        self.settings = _object_settings(given.get("object"))
        self._checksums = checksums
        self.client = _Client(
            bucket=bucket,
            url=self._url,
            region=region,
            endpoint_url=endpoint_url,
            path_style=path_style,
            checksums=checksums,
            given=given,
            parallel=self.parallel,
        )
        # What s3transfer does too: a multipart upload must announce the checksum that its parts will carry.
        self.upload_settings = {**self.settings, **({"ChecksumAlgorithm": "CRC32"} if checksums == "when_supported" else {})}
        self.upload_settings.update({k: v for k, v in self.settings.items() if k == "ChecksumAlgorithm"})

    @property
    def url(self) -> str:
        return self._url

    def path(self, key: str) -> str:
        return f"s3://{self.bucket}/{self.name(key)}"

    def name(self, key: str) -> str:
        """The object's whole name in the bucket."""
        return self._prefix + usable_key(key)

    @property
    def enforces_retention(self) -> bool:
        return True

    def create(self, key: str, *, retain: Retention | None = None) -> _Writer:
        return _Writer(self, key, retain=retain)

    def replace(self, key: str, data: bytes) -> None:
        settings = {k: v for k, v in {**self.settings, **self.proof(data)}.items() if k != _HOLD}
        self.client.call("put_object", op="replace", key=key, Key=self.name(key), Body=data, **settings)

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        check_range(start, length)
        if length == 0:
            self.stat(key)
            return b""
        wanted: dict[str, Any] = (
            {} if start == 0 and length is None else {"Range": f"bytes={start}-{'' if length is None else start + length - 1}"}
        )
        try:
            answer = self.client.call("get_object", op="read", key=key, body=True, Key=self.name(key), **wanted)
        except _PastTheEnd:
            return b""
        data: bytes = answer["Body"]
        if wanted and "ContentRange" not in answer:
            # A store that ignores ranges answers with the whole object.
            data = data[start:] if length is None else data[start : start + length]
        return data

    def stat(self, key: str) -> ObjectInfo:
        try:
            answer = self.client.call("head_object", op="stat", key=key, Key=self.name(key))
        except ObjectMissing:
            # The answer to a HEAD has no body that could say what is missing.
            with contextlib.suppress(AccessDenied):
                self.client.call("head_bucket", op="stat", key=None)
            raise
        return ObjectInfo(key, int(answer["ContentLength"]))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        found = [
            ObjectInfo(name, int(entry["Size"]))
            for page in self._pages(prefix)
            for entry in page.get("Contents", ())
            if (name := entry["Key"][len(self._prefix) :]) and not name.endswith("/")
        ]
        # Look-alikes that keep folders list `a/x` before `a-b`; sorting what is sorted costs next to nothing.
        found.sort(key=lambda o: o.key)
        return iter(found)

    def folders(self, prefix: str = "") -> builtins.list[str]:
        check_folder(prefix)
        skip = len(self._prefix) + len(prefix)
        return sorted(
            {
                name
                for page in self._pages(prefix, Delimiter="/")
                for entry in page.get("CommonPrefixes", ())
                if (name := entry["Prefix"][skip:].rstrip("/"))
            }
        )

    def delete(self, key: str) -> None:
        with contextlib.suppress(ObjectMissing):
            found = {} if self._locks is False else self.client.call("head_object", op="delete", key=key, Key=self.name(key))
            created = NONCE in found.get("Metadata", {})
            if "VersionId" in found and (_shows_lock(found) or (created and self._locks)):
                self._delete_version(key, found)
                if created:
                    return
            self.client.call("delete_object", op="delete", key=key, Key=self.name(key))

    def sweep(self, *, before: datetime, dry_run: bool = False) -> builtins.list[str]:
        """Of the uploads of killed writers, which are aborted, below this store's prefix only; their keys."""
        swept, failed = [], []
        where: dict[str, Any] = {"Prefix": self._prefix}
        while True:
            page = self.client.call("list_multipart_uploads", op="sweep", key=None, **where)
            for upload in page.get("Uploads", ()):
                if upload["Key"].startswith(self._prefix) and upload["Initiated"] < before:
                    key = upload["Key"][len(self._prefix) :]
                    try:
                        if not dry_run:
                            self.client.call("abort_multipart_upload", op="sweep", key=key, Key=upload["Key"], UploadId=upload["UploadId"])
                    except ObjectMissing:
                        pass
                    except StoreError as exc:
                        failed.append(exc)
                        continue
                    swept.append(key)
            if not page.get("IsTruncated"):
                if failed:
                    raise failed[0]
                return sorted(swept)
            where.update(KeyMarker=page["NextKeyMarker"], UploadIdMarker=page["NextUploadIdMarker"])

    def close(self) -> None:
        self.client.close()

    def proof(self, data: Bytes) -> dict[str, Any]:
        """What lets the store check `data` as it arrives; S3 takes nothing into a lock without it. By default the client adds it."""
        if algorithm := self.settings.get("ChecksumAlgorithm"):
            return {"ChecksumAlgorithm": algorithm}
        if self._checksums == "when_supported":
            return {}
        return {"ContentMD5": base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()}

    def _delete_version(self, key: str, found: Mapping[str, Any]) -> None:
        try:
            self.client.call("delete_object", op="delete", key=key, Key=self.name(key), VersionId=found["VersionId"])
        except AccessDenied as exc:
            if not _shows_lock(found):
                raise
            raise _still_locked(key, found, url=self._url) from exc

    @functools.cached_property
    def _locks(self) -> bool | None:
        """Whether the bucket has Object Lock; None if we may not know."""
        try:
            answer = self.client.call("get_object_lock_configuration", op="stat", key=None)
        except AccessDenied:
            return None
        except (BucketMissing, StoreUnavailable):
            raise
        except StoreError:
            return False
        return bool(answer.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled")

    def _pages(self, prefix: str, **more: Any) -> Iterator[dict[str, Any]]:
        token: dict[str, Any] = {}
        while True:
            page = self.client.call("list_objects_v2", op="list", key=None, Prefix=self._prefix + prefix, **more, **token)
            yield page
            if not page.get("IsTruncated"):
                return
            if not page.get("NextContinuationToken"):
                raise StoreError(f"{self._url} says that its listing goes on, but not where", op="list")
            token = {"ContinuationToken": page["NextContinuationToken"]}


class _Client:
    """Calls of the S3 API on fsspec's event loop: made, repeated where that can help, their errors translated."""

    def __init__(
        self,
        *,
        bucket: str,
        url: str,
        region: str | None,
        endpoint_url: str | None,
        path_style: bool | None,
        checksums: str,
        given: dict[str, object],
        parallel: int,
    ) -> None:
        self._bucket, self._url = bucket, url
        self.attempts = max(1, int(cast("int", given.get("attempts", 5))))
        config: dict[str, Any] = {
            "retries": {"mode": "standard", "total_max_attempts": self.attempts},
            "connect_timeout": given.get("connect_timeout", 5),
            "read_timeout": given.get("read_timeout", 60),
            # Several writers and readers share the client; each may have `parallel` requests on the way.
            "max_pool_connections": max(64, 4 * parallel),
            "request_checksum_calculation": checksums,
            "response_checksum_validation": checksums,
        }
        if path_style is not None:
            config["s3"] = {"addressing_style": "path" if path_style else "virtual"}
        session = {"profile": given["profile"]} if given.get("profile") else {}
        from s3fs import S3FileSystem

        self._fs = S3FileSystem(
            anon=False,
            key=given.get("key"),
            secret=given.get("secret"),
            token=given.get("token"),
            endpoint_url=endpoint_url,
            client_kwargs={"region_name": region} if region else {},
            config_kwargs=config,
            use_listings_cache=False,
            skip_instance_cache=True,
            **session,
        )

    def call(self, method: str, *, op: str, key: str | None, body: bool = False, **arguments: Any) -> dict[str, Any]:
        return self.submit(method, op=op, key=key, body=body, **arguments).result()

    def submit(
        self, method: str, *, op: str, key: str | None, body: bool = False, **arguments: Any
    ) -> concurrent.futures.Future[dict[str, Any]]:
        return self.run(self.acall(method, op=op, key=key, body=body, **arguments))

    def run(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._fs.loop)

    @property
    def running(self) -> bool:
        return bool(self._fs.loop.is_running())

    async def acall(self, method: str, *, op: str, key: str | None, body: bool = False, **arguments: Any) -> dict[str, Any]:
        # botocore repeats what fails until the answer's headers are there; an answer that breaks off later is repeated here.
        for attempt in range(1, self.attempts + 1):
            try:
                return await self._once(method, body=body, **arguments)
            except Exception as exc:
                if attempt == self.attempts or not _broke_off(exc):
                    raise _translate(exc, op=op, key=key, url=self._url, locking="ObjectLockMode" in arguments) from exc
            await asyncio.sleep(pause_before(attempt))
        raise AssertionError("unreachable")

    async def _once(self, method: str, *, body: bool, **arguments: Any) -> dict[str, Any]:
        await self._fs.set_session()
        client = await self._fs.get_s3(self._bucket)
        answer: dict[str, Any] = await getattr(client, method)(Bucket=self._bucket, **arguments)
        if body:
            try:
                async with answer["Body"] as stream:
                    answer["Body"] = await stream.read()
            except Exception as exc:
                raise _BrokeOff(_sentence(exc)) from exc
        return answer

    def close(self) -> None:
        creator = getattr(self._fs, "_s3creator", None)
        if creator is not None:
            self._fs.close_session(self._fs.loop, creator)


class _Upload:
    """A multipart upload on its way. Lives apart from the writer, so that it can be aborted after the writer is gone."""

    def __init__(self, client: _Client, *, key: str, name: str, upload_id: str, proof: Callable[[Bytes], dict[str, Any]]) -> None:
        self._client, self._key, self._proof = client, key, proof
        self._where: dict[str, Any] = {"Key": name, "UploadId": upload_id}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._flying: set[concurrent.futures.Future[dict[str, Any]]] = set()
        self._parts: list[dict[str, Any]] = []
        self.count = 0

    def send(self, data: bytearray, *, parallel: int) -> None:
        """Begin to send one part, after waiting until fewer than `parallel` are on their way."""
        while len(self._flying) >= parallel:
            self._land(concurrent.futures.FIRST_COMPLETED)
        self.count += 1
        self._flying.add(self._client.run(self._send(self.count, data, self._proof(data))))

    def complete(self) -> None:
        while self._flying:
            self._land(concurrent.futures.FIRST_EXCEPTION)
        parts = sorted(self._parts, key=lambda p: cast("int", p["PartNumber"]))
        self._client.call(
            "complete_multipart_upload", op="create", key=self._key, MultipartUpload={"Parts": parts}, IfNoneMatch="*", **self._where
        )

    async def abort(self) -> None:
        # A part that arrives after the abort would bring the upload back to life.
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(StoreError):
            await self._client.acall("abort_multipart_upload", op="create", key=self._key, **self._where)

    def _land(self, when: str) -> None:
        done, self._flying = concurrent.futures.wait(self._flying, return_when=when)
        for part in done:
            self._parts.append(part.result())

    async def _send(self, number: int, data: bytearray, proof: dict[str, Any]) -> dict[str, Any]:
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._tasks.add(task)
        try:
            answer = await self._client.acall(
                "upload_part", op="create", key=self._key, PartNumber=number, Body=data, **proof, **self._where
            )
        finally:
            self._tasks.discard(task)
        return {"PartNumber": number, "ETag": answer["ETag"], **{k: v for k, v in answer.items() if k.startswith("Checksum")}}


class _Writer:
    """An object in the making. Bytes are copied out of the caller's buffer before `write` returns."""

    def __init__(self, store: S3Store, key: str, *, retain: Retention | None) -> None:
        self._store, self._key = store, key
        self._name = store.name(key)
        self._nonce = new_nonce()
        self._lock = {"ObjectLockMode": retain.mode.upper(), "ObjectLockRetainUntilDate": retain.until} if retain else {}
        self._buffer = bytearray()
        self._upload: _Upload | None = None
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
                if len(self._buffer) == self._store.part_size:
                    self._send_part()
                room = self._store.part_size - len(self._buffer)
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
            upload, self._upload = self._upload, None
            if upload is not None:
                self._store.client.run(upload.abort()).result()
            self._buffer = bytearray()

    def __del__(self) -> None:
        # Garbage is collected on any thread, the event loop's own among them: ask for the abort and do not wait for it.
        upload = getattr(self, "_upload", None)
        if upload is not None and not sys.is_finalizing() and self._store.client.running:
            self._store.client.run(upload.abort())

    def _send_part(self) -> None:
        upload = self._upload or self._begin()
        if upload.count == MOST_PARTS:
            raise StoreError(
                f"{self._key!r} is larger than {MOST_PARTS} parts of {self._store.part_size} bytes, the most that S3 takes",
                hint="Set the store's option part_size to a larger number of bytes.",
                op="create",
                key=self._key,
            )
        data, self._buffer = self._buffer, bytearray()
        upload.send(data, parallel=self._store.parallel)

    def _begin(self) -> _Upload:
        answer = self._store.client.call(
            "create_multipart_upload", op="create", key=self._key, Key=self._name, **self._ours(self._store.upload_settings)
        )
        self._upload = _Upload(self._store.client, key=self._key, name=self._name, upload_id=answer["UploadId"], proof=self._store.proof)
        return self._upload

    def _publish(self) -> None:
        if self._failed:
            raise StoreError(f"{self._key!r} was not written: an earlier write had failed", op="create", key=self._key)
        if self._upload is None:
            self._settle(self._put, repeat=self._store.client.attempts)
            return
        if self._buffer:
            self._send_part()
        # A refused completion ends the upload on some stores and not on others, so it is not repeated.
        self._settle(self._upload.complete, repeat=1)
        self._upload = None

    def _put(self) -> None:
        settings = self._ours({**self._store.settings, **self._store.proof(self._buffer)})
        self._store.client.call("put_object", op="create", key=self._key, Key=self._name, Body=self._buffer, IfNoneMatch="*", **settings)

    def _settle(self, publish: Callable[[], None], *, repeat: int) -> None:
        """Publish, and if that seems to have failed, look whose object stands there."""
        for attempt in range(1, repeat + 1):
            try:
                publish()
            except StoreError as exc:
                found = self._look(exc)
                if found == self._nonce:
                    return
                # "Conflict" without an object: another's create or delete was under way at the same moment.
                if not isinstance(exc, ObjectExists) or found is not None:
                    raise
                if attempt == repeat:
                    raise StoreUnavailable(
                        f"{self._key!r} was refused because of another operation on it, which left nothing there",
                        hint="Run it again.",
                        op="create",
                        key=self._key,
                    ) from exc
            else:
                return

    def _look(self, refused: StoreError) -> str | None:
        """The nonce of the object that is there, empty if it has none or may not be seen; None if there is no object."""
        try:
            answer = self._store.client.call("head_object", op="stat", key=self._key, Key=self._name)
        except ObjectMissing:
            return None
        except AccessDenied:
            return ""
        except StoreError as exc:
            if not isinstance(refused, ObjectExists):
                return ""
            # Called a conflict, it would have the caller clear away what may be its own.
            raise StoreUnavailable(
                f"Could not find out whether {self._key!r} was written: {exc}", hint="Run it again.", op="create", key=self._key
            ) from exc
        return str(answer.get("Metadata", {}).get(NONCE, ""))

    def _ours(self, settings: dict[str, Any]) -> dict[str, Any]:
        return {**settings, **self._lock, "Metadata": {**settings.get("Metadata", {}), NONCE: self._nonce}}


class _BrokeOff(Exception):
    """An answer whose beginning was there; never leaves this module."""


class _PastTheEnd(StoreError):
    """A range that begins at or after the object's end; never leaves this module."""


def _object_settings(given: object) -> dict[str, Any]:
    settings = dict(cast("Mapping[str, Any]", given or {}))
    if unknown := sorted(set(settings) - OBJECT_SETTINGS):
        raise ConfigError(
            f"Unknown object setting for an s3 store: {', '.join(unknown)}",
            hint=f"Known: {', '.join(sorted(OBJECT_SETTINGS))}. Retention is set by retain_days and retain_mode.",
        )
    return settings


def _broke_off(exc: BaseException) -> bool:
    import aiohttp
    from botocore.exceptions import ClientError
    from botocore.parsers import ResponseParserError

    if isinstance(exc, ClientError):
        # Look-alikes say 429 under names that botocore does not repeat.
        about = exc.response.get("ResponseMetadata", {})
        return about.get("HTTPStatusCode") == 429 and not about.get("RetryAttempts")
    return isinstance(
        exc, _BrokeOff | aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError | ResponseParserError | ConnectionResetError
    )


def _translate(exc: Exception, *, op: str, key: str | None, url: str, locking: bool) -> StoreError | ConfigError:
    """The one place where an error of botocore or aiohttp becomes ours."""
    from botocore import exceptions

    what = f"{op} {key!r} in {url}" if key is not None else f"{op} {url}"
    if isinstance(exc, exceptions.ClientError):
        return _about_locks(exc.response, op=op, key=key, url=url, locking=locking) or _translate_answer(
            exc.response, op=op, key=key, url=url, what=what
        )
    if isinstance(exc, exceptions.NoCredentialsError | exceptions.PartialCredentialsError | exceptions.CredentialRetrievalError):
        return AccessDenied(
            f"There are no usable credentials for {url}",
            hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or a role, as for the aws command.",
            op=op,
            key=key,
        )
    if isinstance(exc, exceptions.ProfileNotFound | exceptions.InvalidRegionError | exceptions.NoRegionError):
        return ConfigError(str(exc), op=op, key=key)
    if isinstance(exc, exceptions.ParamValidationError | ValueError):
        return StoreError(f"Could not {what}: {exc}", op=op, key=key)
    return StoreUnavailable(
        f"Could not {what}: {_sentence(exc)}", hint="Check the endpoint and the network, then run it again.", op=op, key=key
    )


def _about_locks(response: Mapping[str, Any], *, op: str, key: str | None, url: str, locking: bool) -> StoreError | None:
    error = response.get("Error", {})
    status, code = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)), str(error.get("Code", ""))
    said = f"{code} {error.get('Message', '')}".rstrip()
    named = _ABOUT_LOCKS.search(said)
    if op == "create" and status in {400, 404, 501} and (named or (locking and code in _VAGUE)):
        return RetentionRefused(
            f"{url} does not take {key!r} under a lock: {said}",
            hint="Use a bucket with Object Lock (docs/how-to/immutability.md) and a date to come, or leave retain_days out.",
            op=op,
            key=key,
        )
    if op == "delete" and status in {400, 403} and named:
        return ObjectLocked(f"{key!r} in {url} is locked, and the store did not delete it: {said}", op=op, key=key)
    return None


def _translate_answer(response: Mapping[str, Any], *, op: str, key: str | None, url: str, what: str) -> StoreError:  # noqa: PLR0911 - a table in code
    error = response.get("Error", {})
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    code, said = str(error.get("Code", "")), str(error.get("Message", ""))
    known = {code, str(status)} if code in {"", "Unknown"} or code.isdigit() else {code}
    where: dict[str, Any] = {"op": op, "key": key}
    if code == "NoSuchBucket" or (key is None and "404" in known):
        return BucketMissing(f"There is no bucket for {url}", hint="Make the bucket first, or correct its name.", **where)
    if known & _MISSING:
        return ObjectMissing(f"There is no object {key!r} in {url}", **where)
    if code == "InvalidRange" or status == 416:
        return _PastTheEnd(f"The range begins past the end of {key!r}", **where)
    if known & _CONFLICT or status == 412:
        return ObjectExists(f"{key!r} is there already in {url}", **where)
    if known & _DENIED or status in {401, 403}:
        return AccessDenied(f"May not {what}: {code} {said}".rstrip(), hint="Check the credentials and the bucket's policy.", **where)
    if known & _FULL or status == 507:
        return StoreFull(f"No room to {what}: {code} {said}".rstrip(), **where)
    if known & _ELSEWHERE:
        return StoreError(
            f"Could not {what}: {code} {said}".rstrip(), hint="The bucket may be in another region: set COLD_STORE_REGION.", **where
        )
    if code == "KeyTooLongError":
        return InvalidKey(f"{key!r} is too long for this store", **where)
    if status == 501:
        return StoreError(f"{url} has no way to do what it takes to {what}: {code} {said}".rstrip(), **where)
    if status >= 500 or code in {"SlowDown", "RequestTimeout", "ServiceUnavailable", "Throttling", "TooManyRequests"} or status == 429:
        return StoreUnavailable(f"Could not {what}, and gave up after several attempts: {code} {said}".rstrip(), **where)
    return StoreError(f"Could not {what}: {code} {said}".rstrip(), **where)


def _shows_lock(found: Mapping[str, Any]) -> bool:
    return "ObjectLockMode" in found or found.get(_HOLD) == "ON"


def _still_locked(key: str, found: Mapping[str, Any], *, url: str) -> ObjectLocked:
    how = (
        f"until {found['ObjectLockRetainUntilDate'].astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}" if "ObjectLockMode" in found else "by a legal hold"
    )
    return ObjectLocked(
        f"{key!r} in {url} is locked {how}, and the store did not delete it",
        hint="Delete it after that. If the time has come already, the role lacks s3:DeleteObjectVersion.",
        op="delete",
        key=key,
    )


def _sentence(exc: BaseException) -> str:
    return str(exc) or type(exc).__name__
