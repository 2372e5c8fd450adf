"""Secrets as files of this machine: read, made, changed.

Refuses a file that everybody may read or write, to overwrite one, and to leave half of one. A change, in this order: a temporary file of a
fixed name is made in the same folder (so two changes at once exclude each other); the old file is read; the new text is written and
synced, with the old file's owner and mode; it is renamed over the old one; the folder is synced.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from coldstore.errors import KeyRingError

_LARGEST = 1 << 16
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def read_secret(path: Path, *, what: str) -> str:
    """The file's text. `what` it should be, for the error: "key file". A pipe will do."""
    with _translated("read", path, what), path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if stat.S_ISREG(mode) and mode & (stat.S_IROTH | stat.S_IWOTH):
            raise KeyRingError(
                f"everybody on this machine may read or change the {what} {path} (mode {stat.S_IMODE(mode):04o})",
                hint="Close it: chmod 600, or 640 for a group; a mounted secret needs mode 0440..",
            )
        data = file.read(_LARGEST + 1)
    try:
        if len(data) <= _LARGEST:
            return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    raise KeyRingError(f"{path} is no {what}: it is too large or not text", hint="Check the path.") from None


def write_secret(path: Path, text: str, *, what: str) -> None:
    """A new file that only its owner may read. Never overwrites."""
    with _translated("make", path, what):
        fd = os.open(path, _NEW, 0o600)
        with _removed_on_error(path):
            _fill(fd, text)
            _sync_folder(path.parent)


def rewrite_secret(path: Path, change: Callable[[str], str], *, what: str) -> None:
    """The file with `change` of its text instead of it, at one stroke. A link stays, what it leads to is changed."""
    with _translated("change", path, what):
        path = path.resolve(strict=True)
        old = path.stat()
        temporary = path.with_name(f".{path.name}.new")
        fd = _exclusive(temporary, path, what)
        with _removed_on_error(temporary):
            try:
                text = change(read_secret(path, what=what))
                if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(fd, old.st_uid, old.st_gid)
                os.fchmod(fd, stat.S_IMODE(old.st_mode))
            except BaseException:
                os.close(fd)
                raise
            _fill(fd, text)
            temporary.replace(path)
        _sync_folder(path.parent)


def _exclusive(temporary: Path, path: Path, what: str) -> int:
    try:
        return os.open(temporary, _NEW, 0o600)
    except FileExistsError as exc:
        raise KeyRingError(
            f"the {what} {path} is being changed by somebody else, or somebody was stopped in the middle",
            hint=f"If nobody is at work on it, remove {temporary}.",
        ) from exc


def _fill(fd: int, text: str) -> None:
    with os.fdopen(fd, "w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(fd)


@contextlib.contextmanager
def _removed_on_error(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    # Some file systems cannot sync a folder, and a folder need not be readable to be written to; there is nothing better to do then.
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextlib.contextmanager
def _translated(verb: str, path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except FileExistsError as exc:
        raise KeyRingError(f"{path} is there already, and is not overwritten", hint="Choose another name.") from exc
    except FileNotFoundError as exc:
        if verb == "make":
            raise KeyRingError(f"there is no folder for {path}", hint="Make the folder first, closed to others: mkdir -m 700.") from exc
        raise KeyRingError(f"there is no {what} {path}", hint="Check the path; `coldstore keygen` makes one.") from exc
    except IsADirectoryError as exc:
        raise KeyRingError(f"{path} is a folder and no {what}", hint="Name the file in it.") from exc
    except (OSError, ValueError) as exc:  # a path with a NUL in it is a ValueError
        said = exc.strerror if isinstance(exc, OSError) else "it is no path"
        raise KeyRingError(f"cannot {verb} the {what} {path}: {said}", hint="Check its owner and mode, and those of its folder.") from exc
