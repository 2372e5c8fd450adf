"""A folder as a mapping of names to files: `notes/today.md` → its bytes and whether it may be executed.

Only regular files are memory. Links are not followed and, like sockets and devices, not taken: they are named in `left_out`, so that
nobody believes they were saved. An empty folder is no file and is not kept. A file that cannot be read is an error, and so is a name
that is not UTF-8: a part is never taken for the whole.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from coldstore.errors import FolderError

_ATTEMPTS = 3  # somebody who writes all the time is read while he writes


@dataclass(frozen=True, slots=True)
class File:
    """What is kept of a file: its bytes, and whether its owner may execute it."""

    content: bytes
    executable: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """What tells that a file was changed, without reading it."""

    inode: int
    size: int
    modified: int
    mode: int


#: Name → mark of everything in a folder that is no folder.
Marks = dict[str, Mark]


@dataclass(frozen=True, slots=True)
class Tree:
    """A folder's files. `left_out`: what else is there, by name. `marks`: from before it was read. `settled`: nothing was written
    meanwhile."""

    files: dict[str, File]
    left_out: dict[str, str]
    marks: Marks
    settled: bool = True


def read_tree(folder: Path) -> Tree:
    """All files below `folder`, of one moment if there is one. Raises `FolderError`."""
    for attempt in range(_ATTEMPTS):
        before = marks(folder)
        files = {name: file for name, mark in before.items() if stat.S_ISREG(mark.mode) and (file := _read(folder, name))}
        settled = marks(folder) == before
        if settled or attempt == _ATTEMPTS - 1:
            break
    left_out = {name: _KINDS.get(stat.S_IFMT(mark.mode), "no regular file") for name, mark in before.items() if not stat.S_ISREG(mark.mode)}
    return Tree(files, left_out, before, settled)


_KINDS = {stat.S_IFLNK: "a symbolic link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def marks(folder: Path) -> Marks:
    """What there is, in the order of the names. Raises `FolderError` for what cannot be looked into."""
    try:
        if not folder.is_dir():
            raise FolderError(f"there is no folder {folder}", hint="Check the path.")
        return dict(sorted(_walk(os.fspath(folder), "")))
    except OSError as exc:
        raise FolderError(f"{exc.filename} cannot be read: {exc.strerror}", hint=_WHO) from exc


def _walk(path: str, prefix: str) -> Iterator[tuple[str, Mark]]:
    try:
        with os.scandir(path) as found:
            entries = list(found)
    except FileNotFoundError:
        return  # removed since its name was read
    for entry in entries:
        name = prefix + _utf8(entry.name, path)
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, name + "/")
            continue
        try:
            s = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        yield name, Mark(s.st_ino, s.st_size, s.st_mtime_ns, s.st_mode)


_WHO = "Check who may read it. Nothing was saved: a part would look like the whole."


def _utf8(name: str, path: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError as exc:
        raise FolderError(f"{path} has a name that is not UTF-8: {os.fsencode(name)!r}", hint="Rename the file.") from exc
    return name


def _read(folder: Path, name: str) -> File | None:
    """None for what is not there any more. Never follows a link that came into its place, nor waits for a pipe."""
    path = folder / name
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise FolderError(f"{path} cannot be read: {exc.strerror}", hint=_WHO) from exc
    with os.fdopen(fd, "rb") as file:
        mode = os.fstat(fd).st_mode
        try:
            return File(file.read(), bool(mode & stat.S_IXUSR)) if stat.S_ISREG(mode) else None
        except OSError as exc:
            raise FolderError(f"{path} cannot be read: {exc.strerror}", hint=_WHO) from exc


def check_names(names: Iterable[str]) -> None:
    """Nothing, or `FolderError` for the first that would leave its folder or could not be a file there."""
    known = set(names)
    for name in sorted(known):
        if (
            any(part in {"", ".", ".."} for part in name.split("/"))
            or "\0" in name
            or (os.sep != "/" and os.sep in name)
            or not _is_utf8(name)
        ):
            raise FolderError(
                f"{name!r} cannot be the name of a file in a folder",
                hint="Names are relative and have no empty, '.' or '..' part. Nothing was written. From Python any name can be read.",
            )
        if above := next((a for a in folders_of([name]) if a in known), None):
            raise FolderError(f"{above!r} is a file and, because of {name!r}, a folder as well", hint="Nothing was written. Rename one.")


def folders_of(names: Iterable[str]) -> set[str]:
    """Every folder that the files `names` lie in: `a` and `a/b` of `a/b/c`."""
    found: set[str] = set()
    for name in names:
        while (name := name.rpartition("/")[0]) and name not in found:
            found.add(name)
    return found


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Changes:
    """From what is in a folder to what is wanted there, as names. `surplus`: there, and not wanted."""

    added: list[str]
    changed: list[str]
    unchanged: list[str]
    surplus: list[str]


def compare(there: Tree, wanted: Mapping[str, File]) -> Changes:
    """A link or a socket in the place of a wanted file counts as changed."""
    names = there.files.keys() | there.left_out.keys()
    same = {name for name, file in wanted.items() if there.files.get(name) == file}
    return Changes(
        added=sorted(wanted.keys() - names),
        changed=sorted((wanted.keys() & names) - same),
        unchanged=sorted(same),
        surplus=sorted(there.files.keys() - wanted.keys()),
    )
