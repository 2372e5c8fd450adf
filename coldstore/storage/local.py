"""Objects as files of a local (or mounted) disk, by plain system calls.

Refuses to expose half a file, to overwrite in `create`, and to leave its root. Nothing here imports fsspec: its local files are neither
atomic nor synced.

A new object, in this order:
1. the folder is made where it is missing, and every folder above it, up to the root's parent, is synced once;
2. a temporary file `.tmp-<token>` of an unused name is opened in that same folder;
3. the caller's buffers are written to it as they come, and it is synced;
4. it is linked to its final name, which fails if the name is taken: the one step that makes the object visible;
5. the temporary name is removed and the folder is synced.

A crash before step 4 leaves a temporary file, which `list` never shows; one after it leaves the object and perhaps a second name for it.
Memory is private: folders are made with mode 0700 and files with 0600. Symbolic links below the root are not followed by `list`.
"""

# Plain system calls are the point here: a small object costs a fifth of a millisecond.
# ruff: noqa: PTH100, PTH102, PTH105, PTH106, PTH108, PTH112, PTH116, PTH118, PTH120, PTH121
from __future__ import annotations

import builtins
import contextlib
import ctypes
import errno
import os
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from types import TracebackType
from typing import Any, NoReturn, Self
from urllib.parse import quote

from coldstore.errors import AccessDenied, InvalidKey, ObjectExists, ObjectMissing, StoreError, StoreFull, StoreUnavailable
from coldstore.storage.shared import Bytes, check_folder, check_prefix, check_range, flat, new_nonce, usable_key
from coldstore.storage.store import ObjectInfo, Retention

TEMPORARY = ".tmp-"

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_BROKEN = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV, errno.EHOSTDOWN}
# Kernels and network file systems that cannot sync a folder say so with one of these; there is nothing better to do then.
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}
_RENAME_NOREPLACE = 1
_AT_FDCWD = -100
_SYNC_FILE_RANGE_WRITE = 2
# The disk starts on what was written every so many bytes: then it works while rows are still being read, and the sync at the end,
# which would otherwise write everything while nothing else happens, finds it done.
_WRITE_BACK = 8 << 20


class LocalStore:
    """A `Store` below one folder, which is made on the first write."""

    def __init__(self, root: str) -> None:
        self._root = os.path.abspath(root)
        self._synced: set[str] = set()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return "file://" + quote(self._root)

    def path(self, key: str) -> str:
        return os.path.join(self._root, usable_key(key))

    @property
    def enforces_retention(self) -> bool:
        return False

    def create(self, key: str, *, retain: Retention | None = None) -> _Writer:  # noqa: ARG002 - a disk keeps no date; the manifest does
        return _Writer(self, key, self.path(key))

    def replace(self, key: str, data: bytes) -> None:
        with _translated("replace", key), _Temporary(self, self.path(key)) as file:
            file.write(data)
            file.sync()
            file.publish_over()

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        check_range(start, length)
        with _translated("read", key):
            fd = os.open(self.path(key), os.O_RDONLY | os.O_CLOEXEC)
            try:
                found = os.fstat(fd)
                if not _is_file(found):
                    raise IsADirectoryError(errno.EISDIR, "not a file", key)
                left = found.st_size - start
                return _read_exactly(fd, start, left if length is None else min(left, length))
            finally:
                os.close(fd)

    def stat(self, key: str) -> ObjectInfo:
        with _translated("stat", key):
            found = os.stat(self.path(key))
            if not _is_file(found):
                raise ObjectMissing(f"There is no object {key!r} in {self.url}", op="stat", key=key)
            return ObjectInfo(key, found.st_size)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        edge = prefix.rfind("/") + 1
        return self._walk(prefix[:edge], prefix[edge:])

    def folders(self, prefix: str = "") -> builtins.list[str]:
        check_folder(prefix)
        with _translated("folders", prefix):
            return sorted(e.name for e in self._scan(prefix) if e.is_dir(follow_symlinks=False) and _may_be_ours(e.name))

    def delete(self, key: str) -> None:
        path = self.path(key)
        with _translated("delete", key):
            try:
                os.unlink(path)
            except (FileNotFoundError, NotADirectoryError):
                return
            except (IsADirectoryError, PermissionError):
                if os.path.isdir(path):
                    return
                raise
            self._drop_empty_folders(os.path.dirname(path))

    def sweep(self, *, before: datetime, dry_run: bool = False) -> builtins.list[str]:
        """Of the temporary files of killed writers; their paths."""
        swept, failed = [], []
        for folder, _, names in os.walk(self._root):
            for path in (os.path.join(folder, name) for name in names if name.startswith(TEMPORARY)):
                try:
                    with _translated("sweep", path), contextlib.suppress(FileNotFoundError):
                        if os.lstat(path).st_mtime < before.timestamp():
                            if not dry_run:
                                os.unlink(path)
                            swept.append(path)
                except StoreError as exc:
                    failed.append(exc)
        if failed:
            raise failed[0]
        return sorted(swept)

    def close(self) -> None:
        """Nothing is held open between calls."""

    def make_folder(self, folder: str, *, again: bool = False) -> None:
        """`folder` and all above it exist and would survive a power cut. `again` forgets what is known: it was gone."""
        if folder in self._synced and not again:
            return
        missing = []
        step = folder
        while not os.path.isdir(step):
            missing.append(step)
            step = os.path.dirname(step)
        for step in reversed(missing):
            _make_one(step)
        # Those below the root are synced even if they were there: another process may have made them and not come so far.
        inside = [step for step in _upwards(folder) if step.startswith(self._root)]
        for step in {*missing, *inside}:
            _sync_folder(os.path.dirname(step))
        with self._lock:
            self._synced.add(folder)

    def _drop_empty_folders(self, folder: str) -> None:
        # An empty folder is no object: `folders` must not show a date whose snapshots are all gone. A writer that races with this
        # finds its folder missing and makes it again.
        while len(folder) > len(self._root):
            try:
                os.rmdir(folder)
            except OSError:
                break
            with self._lock:
                self._synced.discard(folder)
            folder = os.path.dirname(folder)
        _sync_folder(folder)

    def _scan(self, folder: str) -> builtins.list[os.DirEntry[str]]:
        try:
            with os.scandir(os.path.join(self._root, folder)) as entries:
                return builtins.list(entries)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _walk(self, folder: str, start: str = "") -> Iterator[ObjectInfo]:
        """What is below `folder` and begins with `start` there: of a day's hundred thousand names the others are only read."""
        # A folder's name sorts with its slash, as it does inside the keys: `a-b` comes before `a/x`.
        with _translated("list", folder + start):
            found = sorted(
                (folder + e.name + ("/" if e.is_dir(follow_symlinks=False) else ""), e)
                for e in self._scan(folder)
                if e.name.startswith(start) and _may_be_ours(e.name)
            )
        for path, entry in found:
            if path.endswith("/"):
                yield from self._walk(path)
            elif (size := _size(entry)) is not None:
                yield ObjectInfo(path, size)


class _Temporary:
    """A file of an unused name beside `final`; removed when the block ends unless it was renamed away."""

    def __init__(self, store: LocalStore, final: str) -> None:
        self.store, self.final = store, final
        self.folder = os.path.dirname(final)
        self.name = ""
        self.fd = -1
        self._written = self._begun = 0

    def __enter__(self) -> Self:
        self.store.make_folder(self.folder)
        name = os.path.join(self.folder, TEMPORARY + new_nonce())
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        for attempt in range(8):
            try:
                self.fd = os.open(name, flags, 0o600)
                break
            except FileNotFoundError:
                if attempt == 7:
                    raise
                self.store.make_folder(self.folder, again=True)
        self.name = name
        return self

    def write(self, data: Bytes) -> None:
        view = flat(data)
        while view:
            done = os.write(self.fd, view)
            self._written += done
            view = view[done:]
        if self._written - self._begun >= _WRITE_BACK:
            _begin_write_back(self.fd, self._begun, self._written - self._begun)
            self._begun = self._written

    def sync(self) -> None:
        os.fsync(self.fd)
        # Closing reports what a network disk could not store.
        fd, self.fd = self.fd, -1
        os.close(fd)

    def publish(self) -> None:
        """Give the file its final name; `FileExistsError` if that is taken by another."""
        try:
            os.link(self.name, self.final, follow_symlinks=False)
        except FileExistsError:
            # A network file system can lose the reply to a link that was made and meet its own file when it asks again.
            if not _same_file(self.name, self.final):
                raise
        except OSError as exc:
            if exc.errno not in _NO_LINKS:
                raise
            _rename_new(self.name, self.final)
            self.name = ""
        self.discard()
        _sync_folder(self.folder)

    def publish_over(self) -> None:
        """Give the file its final name, whatever had it before."""
        os.replace(self.name, self.final)
        self.name = ""
        _sync_folder(self.folder)

    def discard(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            with contextlib.suppress(OSError):
                os.close(fd)
        if self.name:
            name, self.name = self.name, ""
            with contextlib.suppress(OSError):
                os.unlink(name)

    def __exit__(self, *_: object) -> None:
        self.discard()


class _Writer:
    """An object in the making. Bytes are on their way to the disk when `write` returns; nothing is kept."""

    def __init__(self, store: LocalStore, key: str, final: str) -> None:
        self._store, self._key, self._final = store, key, final
        self._file: _Temporary | None = None
        self._failed = False

    def __enter__(self) -> Self:
        with _translated("create", self._key):
            self._file = _Temporary(self._store, self._final).__enter__()
        return self

    def write(self, data: Bytes) -> None:
        if self._file is None or self._file.fd < 0:
            raise ValueError("the object is not open for writing")
        # Stays set if the write does not return: a caller that carries on regardless must not publish what has a hole in it.
        failed, self._failed = self._failed, True
        with _translated("create", self._key):
            self._file.write(data)
        self._failed = failed

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        try:
            if kind is None:
                if self._failed:
                    raise StoreError(f"{self._key!r} was not written: an earlier write had failed", op="create", key=self._key)
                with _translated("create", self._key):
                    file.sync()
                    file.publish()
        finally:
            file.discard()

    def __del__(self) -> None:
        if self._file is not None:
            self._file.discard()


def _read_exactly(fd: int, start: int, length: int) -> bytes:
    pieces = []
    while length > 0:
        piece = os.pread(fd, length, start)
        if not piece:
            break
        pieces.append(piece)
        start += len(piece)
        length -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _is_file(found: os.stat_result) -> bool:
    return (found.st_mode & 0o170000) == 0o100000


def _may_be_ours(name: str) -> bool:
    """Neither a temporary file nor a name in another encoding, which no key can spell."""
    if name.startswith(TEMPORARY):
        return False
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _same_file(name: str, other: str) -> bool:
    try:
        return os.path.samefile(name, other)
    except FileNotFoundError:
        return False


def _size(entry: os.DirEntry[str]) -> int | None:
    """The size, or None for what is no object: a link, a socket, a file deleted since the folder was read."""
    try:
        return entry.stat(follow_symlinks=False).st_size if entry.is_file(follow_symlinks=False) else None
    except FileNotFoundError:
        return None


def _upwards(folder: str) -> list[str]:
    steps = [folder]
    while (parent := os.path.dirname(steps[-1])) != steps[-1]:
        steps.append(parent)
    return steps


def _make_one(folder: str) -> None:
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        if not os.path.isdir(folder):
            raise NotADirectoryError(errno.ENOTDIR, "a file stands where a folder is needed", folder) from None


def _sync_folder(folder: str) -> None:
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        # Removed by a delete that emptied it: its own parent is what matters then, and that one is synced by whoever removed it.
        return
    except PermissionError:
        # A folder that may be written but not read cannot be opened to be synced.
        return
    try:
        os.fsync(fd)
    except OSError as exc:
        if exc.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(fd)


def _rename_new(source: str, final: str) -> None:
    """Rename without replacing, where the file system has no hard links."""
    if _renameat2 is None or _renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(final), _RENAME_NOREPLACE) != 0:
        code = ctypes.get_errno() if _renameat2 is not None else errno.ENOSYS
        if code in {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
            raise StoreError(
                "This file system can neither link a file nor rename one without replacing",
                hint="Choose a folder on another file system: two runs could overwrite each other's snapshot here.",
                op="create",
            )
        raise OSError(code, os.strerror(code), final)


def _begin_write_back(fd: int, start: int, length: int) -> None:
    """Ask the disk to begin with these bytes, and wait for nothing. Only a hint: where it is not understood, or fails, the sync at the end
    does all of the work and tells all of the errors (this call, without its waiting flags, leaves an error of the disk where it is)."""
    if _sync_file_range is not None:
        _sync_file_range(fd, start, length, _SYNC_FILE_RANGE_WRITE)


def _libc(name: str, *arguments: Any) -> Callable[..., int] | None:
    """A function of the C library that Python does not offer; None where this system has none."""
    try:
        function = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (OSError, AttributeError):
        return None
    function.argtypes = list(arguments)
    function.restype = ctypes.c_int
    found: Callable[..., int] = function
    return found


_renameat2 = _libc("renameat2", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_sync_file_range = _libc("sync_file_range", ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


class _translated(contextlib.AbstractContextManager[None]):  # noqa: N801 - reads as a verb in `with _translated(...)`
    """Turns the operating system's errors into ours. A class and not a generator: it stands on the path of every write."""

    __slots__ = ("_key", "_op")

    def __init__(self, op: str, key: str) -> None:
        self._op, self._key = op, key

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(exc, OSError):
            _raise(exc, op=self._op, key=self._key)


def _raise(exc: OSError, *, op: str, key: str) -> NoReturn:
    code = exc.errno
    where = {"op": op, "key": key}
    if isinstance(exc, FileExistsError):
        raise ObjectExists(f"{key!r} is there already", **where) from exc
    if op in {"read", "stat"} and code in {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}:
        raise ObjectMissing(f"There is no object {key!r}", **where) from exc
    if code in _FULL:
        raise StoreFull(
            f"No room to write {key!r}: {exc.strerror}", hint="Free some space, or prune old snapshots, and run again.", **where
        ) from exc
    if code in _DENIED:
        raise AccessDenied(
            f"May not {op} {key!r}: {exc.strerror}", hint="Check the owner and the mode of the store's folder.", **where
        ) from exc
    if code == errno.ENAMETOOLONG:
        raise InvalidKey(f"{key!r} is too long for this file system", **where) from exc
    if code in _BROKEN:
        raise StoreUnavailable(f"The disk failed to {op} {key!r}: {exc.strerror}", **where) from exc
    raise StoreError(f"Could not {op} {key!r}: {exc.strerror or exc}", **where) from exc
