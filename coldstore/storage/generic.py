"""Objects on any other file system that fsspec speaks: sftp, smb, hdfs, azure, memory.

Refuses to overwrite in `create`, but cannot make that one step. A new object is collected under a temporary name `.tmp-<token>` in the same
folder, then the final name is looked up, then the temporary one is renamed to it. Threads of this process never both win, but of two
*processes* that create one key at the same moment both may succeed, and the later one stays. Calls are not repeated here; most of these
file systems repeat by themselves. Use S3, GCS or a disk where several machines write.

`memory://` lives as long as the process, is shared by all its stores, and keeps every promise.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import threading
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import IO, Any, Self

from coldstore.errors import (
    AccessDenied,
    ConfigError,
    InvalidKey,
    ObjectExists,
    ObjectMissing,
    StoreError,
    StoreFull,
    StoreUnavailable,
    redact,
)
from coldstore.storage.shared import Bytes, check_folder, check_prefix, check_range, flat, new_nonce, root_prefix, usable_key
from coldstore.storage.store import ObjectInfo, Retention

TEMPORARY = ".tmp-"

# One lock for the process: look-up and rename must not interleave, and file objects of memory:// share one position among all readers.
_one_at_a_time = threading.RLock()


class FsspecStore:
    """A `Store` below any fsspec URL. `options` go to the file system as they are. Create-only is checked, not atomic: see the module."""

    def __init__(self, url: str, *, options: Mapping[str, object] | None = None) -> None:
        import fsspec

        self._url = redact(url).rstrip("/")
        protocol = url.partition("://")[0]
        given = dict(options or {})
        if protocol != "memory":
            given = {"use_listings_cache": False, "skip_instance_cache": True, **given}
        try:
            self._fs: Any
            self._fs, path = fsspec.core.url_to_fs(url, **given)
        except ImportError as exc:
            raise ConfigError(f"The driver for {protocol}:// is not installed", hint=redact(str(exc))) from exc
        except (ValueError, TypeError) as exc:
            raise ConfigError(
                f"{self._url} is not a store that coldstore knows",
                hint="Use a folder, s3://bucket/prefix, gs://bucket/prefix, or another URL that fsspec understands.",
            ) from exc
        except Exception as exc:
            raise _translated_error(exc, op="open", key=None, url=self._url) from exc
        root_prefix(path, url=self._url)
        self._root = path.rstrip("/")

    @property
    def url(self) -> str:
        """Without credentials. On a store of this kind create-only is a look and then a rename, not one atomic step."""
        return self._url

    def path(self, key: str) -> str:
        return f"{self._url}/{usable_key(key)}"

    @property
    def enforces_retention(self) -> bool:
        return False

    def create(self, key: str, *, retain: Retention | None = None) -> _Writer:  # noqa: ARG002 - nothing here keeps a date; the manifest does
        usable_key(key)
        return _Writer(self, key)

    def replace(self, key: str, data: bytes) -> None:
        usable_key(key)
        with _translated("replace", key, self._url), _one_at_a_time:
            if self.in_memory:
                self._fs.pipe_file(self.full(key), bytes(data))
                return
            temporary = self.temporary_beside(key)
            try:
                with self._fs.open(temporary, "wb") as file:
                    file.write(data)
                self.rename(temporary, key)
            finally:
                self.forget(temporary)

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        usable_key(key)
        check_range(start, length)
        with _translated("read", key, self._url), self._reading():
            size = self._file_info(key)["size"]
            end = size if length is None else min(size, start + length)
            return bytes(self._fs.cat_file(self.full(key), start=start, end=end)) if start < end else b""

    def stat(self, key: str) -> ObjectInfo:
        usable_key(key)
        with _translated("stat", key, self._url), self._reading():
            return ObjectInfo(key, int(self._file_info(key)["size"]))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        folder = self._root + "/" + prefix[: prefix.rfind("/") + 1]
        with _translated("list", prefix, self._url), self._reading():
            self._fs.invalidate_cache()
            try:
                entries = self._fs.find(folder.rstrip("/") or self._fs.root_marker, detail=True).values()
            except FileNotFoundError:
                entries = ()
            found = [ObjectInfo(self._key(e["name"]), int(e["size"] or 0)) for e in entries if e["type"] == "file"]
        found = [o for o in found if o.key.startswith(prefix) and not o.key.rpartition("/")[2].startswith(TEMPORARY)]
        found.sort(key=lambda o: o.key)
        return iter(found)

    def folders(self, prefix: str = "") -> builtins.list[str]:
        # Not the file system's own folders: an empty one is none of ours.
        check_folder(prefix)
        below = (o.key[len(prefix) :] for o in self.list(prefix))
        return sorted({key.partition("/")[0] for key in below if "/" in key})

    def delete(self, key: str) -> None:
        usable_key(key)
        with _translated("delete", key, self._url), _one_at_a_time, contextlib.suppress(FileNotFoundError):
            self._file_info(key)
            self._fs.rm_file(self.full(key))

    def close(self) -> None:
        """Connections belong to the file system, which closes them when it is let go of."""

    @property
    def in_memory(self) -> bool:
        return "memory" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,))

    def full(self, key: str) -> str:
        return f"{self._root}/{key}"

    def temporary_beside(self, key: str) -> str:
        folder = self.full(key).rpartition("/")[0]
        self._fs.makedirs(folder, exist_ok=True)
        return f"{folder}/{TEMPORARY}{new_nonce()}"

    def open_temporary(self, key: str) -> tuple[str, IO[bytes]]:
        name = self.temporary_beside(key)
        return name, self._fs.open(name, "wb")

    def publish(self, temporary: str, key: str) -> None:
        with _one_at_a_time:
            self._fs.invalidate_cache()
            if self._fs.exists(self.full(key)):
                raise FileExistsError(key)
            self.rename(temporary, key)

    def publish_bytes(self, data: bytes, key: str) -> None:
        with _one_at_a_time:
            if self._fs.exists(self.full(key)):
                raise FileExistsError(key)
            self._fs.pipe_file(self.full(key), data)

    def rename(self, temporary: str, key: str) -> None:
        from fsspec import AbstractFileSystem

        if type(self._fs).mv is not AbstractFileSystem.mv:
            self._fs.mv(temporary, self.full(key))
            return
        # The inherited `mv` reads `*` and `[` in a name as patterns.
        self._fs.cp_file(temporary, self.full(key))
        self._fs.rm_file(temporary)

    def forget(self, temporary: str) -> None:
        with contextlib.suppress(Exception):
            if self._fs.exists(temporary):
                self._fs.rm_file(temporary)

    def _reading(self) -> contextlib.AbstractContextManager[Any]:
        return _one_at_a_time if self.in_memory else contextlib.nullcontext()

    def _file_info(self, key: str) -> dict[str, Any]:
        info: dict[str, Any] = self._fs.info(self.full(key))
        if info["type"] != "file":
            raise FileNotFoundError(key)
        return info

    def _key(self, name: str) -> str:
        # Some file systems give names back without the slash that their roots begin with.
        root = self._root.lstrip("/")
        return name.lstrip("/").removeprefix(root).lstrip("/") if root else name.lstrip("/")


class _Writer:
    """An object in the making: a temporary file, or for memory:// a buffer."""

    def __init__(self, store: FsspecStore, key: str) -> None:
        self._store, self._key = store, key
        self._temporary = ""
        self._file: IO[bytes] | None = None
        self._pieces: builtins.list[bytes] = []
        self._open = False
        self._failed = False

    def __enter__(self) -> Self:
        if not self._store.in_memory:
            with _translated("create", self._key, self._store.url):
                self._temporary, self._file = self._store.open_temporary(self._key)
        self._open = True
        return self

    def write(self, data: Bytes) -> None:
        if not self._open:
            raise ValueError("the object is not open for writing")
        if self._file is None:
            self._pieces.append(bytes(data))
            return
        failed, self._failed = self._failed, True
        with _translated("create", self._key, self._store.url):
            self._file.write(flat(data))
        self._failed = failed

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._open = False
        try:
            with _translated("create", self._key, self._store.url):
                if kind is None:
                    self._publish()
        finally:
            self._discard()

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self._discard()

    def _publish(self) -> None:
        if self._failed:
            raise StoreError(f"{self._key!r} was not written: an earlier write had failed", op="create", key=self._key)
        if self._file is None:
            self._store.publish_bytes(b"".join(self._pieces), self._key)
        else:
            self._file.close()
            self._store.publish(self._temporary, self._key)

    def _discard(self) -> None:
        file, self._file = self._file, None
        self._pieces = []
        if file is not None:
            with contextlib.suppress(Exception):
                file.close()
            self._store.forget(self._temporary)


@contextlib.contextmanager
def _translated(op: str, key: str | None, url: str) -> Iterator[None]:
    try:
        yield
    except (StoreError, ConfigError):
        raise
    except Exception as exc:
        raise _translated_error(exc, op=op, key=key, url=url) from exc


def _translated_error(exc: Exception, *, op: str, key: str | None, url: str) -> StoreError:
    what = f"{op} {key!r} in {url}" if key is not None else f"{op} {url}"
    where: dict[str, Any] = {"op": op, "key": key}
    code = getattr(exc, "errno", None)
    if isinstance(exc, FileExistsError):
        return ObjectExists(f"{key!r} is there already in {url}", **where)
    if isinstance(exc, FileNotFoundError | NotADirectoryError | IsADirectoryError) and op in {"read", "stat"}:
        return ObjectMissing(f"There is no object {key!r} in {url}", **where)
    if isinstance(exc, PermissionError):
        return AccessDenied(f"May not {what}: {exc}", **where)
    if code in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return StoreFull(f"No room to {what}: {exc}", **where)
    if code == errno.ENAMETOOLONG:
        return InvalidKey(f"{key!r} cannot be a name in {url}", **where)
    if isinstance(exc, ConnectionError | TimeoutError):
        return StoreUnavailable(f"Could not {what}: {exc}", hint="Check the network, then run it again.", **where)
    return StoreError(f"Could not {what}: {exc or type(exc).__name__}", **where)
