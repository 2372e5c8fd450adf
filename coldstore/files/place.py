"""Files into a folder, all of them or none: the inverse of `tree.py`.

    compare → new folder beside the old one → old files that stay are linked into it → sync → exchange the two → remove the old one

The exchange is one step of the file system (`renameat2`): whoever looks sees the old folder or the new one, and so does whoever comes
after a crash. Where there is no such step the old one is moved aside first, and `place` puts it back if it finds that it never got
further. A folder that somebody wrote to meanwhile is left as it is. What is not in `wanted` stays, unless the mode is `replace`; links,
sockets and empty folders are never memory, and stay in every mode unless a wanted file needs their name.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from coldstore.errors import ConfigError, FolderError, RestoreConflict, TargetNotEmpty
from coldstore.files.tree import Changes, File, Tree, check_names, compare, folders_of, marks, read_tree

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_NEW_FILE, _NEW_FOLDER = 0o600, 0o700  # memory is its owner's, as everything in a store on a disk is
_NOT_SUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}
_MARK = ".coldstore-"
_SYNCERS = 16


@dataclass(frozen=True, slots=True)
class Placing:
    """How. `mode`: fresh, merge or replace. `on_conflict`: fail, skip or update, for merge and files that differ."""

    mode: str = "merge"
    on_conflict: str = "fail"

    def __post_init__(self) -> None:
        if self.mode not in {"fresh", "merge", "replace"} or self.on_conflict not in {"fail", "skip", "update"}:
            raise ConfigError(f"no such mode: {self.mode}, on conflict {self.on_conflict}")


@dataclass(frozen=True, slots=True)
class Plan:
    """What `place` does, as names: `write` comes out of the snapshot, `keep` stays, `remove` goes. `there`: the folder as it was looked at,
    None where there is none yet."""

    folder: Path
    there: Tree | None
    wanted: Mapping[str, File]
    changes: Changes
    write: frozenset[str]
    keep: frozenset[str]
    remove: frozenset[str]


def plan(folder: Path, wanted: Mapping[str, File], how: Placing) -> Plan:
    """What would be done. Raises `FolderError`, `TargetNotEmpty` or `RestoreConflict`; nothing is touched."""
    check_names(wanted)
    with _errors_as(folder):
        folder = folder.resolve()
        _put_back(folder)
        there = read_tree(folder) if folder.is_dir() else None
        if there is None and os.path.lexists(folder):
            raise FolderError(f"{folder} is no folder", hint="Name another.")
    seen = there or Tree({}, {}, {})
    changes = compare(seen, wanted)
    _refuse(folder, seen, changes, how)
    skip = set(changes.changed) if (how.mode, how.on_conflict) == ("merge", "skip") else set[str]()
    write = {*changes.added, *changes.changed} - skip
    remove = set(changes.surplus) if how.mode == "replace" else set[str]()
    keep = (seen.files.keys() | seen.left_out.keys()) - write - remove
    in_the_way = (keep & folders_of(write)) | {name for name in keep if folders_of([name]) & write}
    if in_the_way and how.mode != "replace":
        raise RestoreConflict(
            f"{min(in_the_way)!r} of {folder} is in the way: a file in one place is a folder in the other",
            hint="Nothing was done. Move it away, or let the folder become exactly the snapshot: `vault restore --mirror`.",
        )
    return Plan(folder, there, wanted, changes, frozenset(write), frozenset(keep - in_the_way), frozenset(remove | in_the_way))


def _refuse(folder: Path, there: Tree, changes: Changes, how: Placing) -> None:
    if how.mode == "fresh" and there.files:
        raise TargetNotEmpty(
            f"{folder} has files already",
            hint="Name an empty folder; --mode merge adds what is missing, --mode replace makes it exactly the snapshot.",
        )
    if changes.changed and (how.mode == "fresh" or (how.mode, how.on_conflict) == ("merge", "fail")):
        more = f", and {len(changes.changed) - 1} more" if len(changes.changed) > 1 else ""
        raise RestoreConflict(
            f"{folder} has another {changes.changed[0]!r} than the snapshot{more}",
            hint="Nothing was done. Save what is there first; --dry-run shows the difference, `vault restore --overwrite` ends it.",
        )


def place(chosen: Plan) -> None:
    """Carry it out. Raises `FolderError`; then the folder is as it was."""
    if chosen.there is not None and not chosen.write and not chosen.remove:
        return
    with _errors_as(chosen.folder), _sibling(chosen.folder) as new:
        if chosen.there is not None:
            _copy_folders(chosen.folder, new, chosen)
            for name in sorted(chosen.keep):
                _stay(chosen.folder / name, new / name)
        for name in sorted(chosen.write):
            _write(new, name, chosen.wanted[name], like=chosen.folder)
        _sync_all(new, chosen.write)
        if chosen.there is not None and marks(chosen.folder) != chosen.there.marks:
            raise FolderError(
                f"{chosen.folder} was written to meanwhile", hint="It is as it was. Stop whoever writes to it, and run it again."
            )
        _swap(new, chosen.folder, there=chosen.there is not None)


@contextmanager
def _errors_as(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        hint = "It is as it was. Check who may write there, and the room that is left."
        if exc.errno in {errno.EBUSY, errno.EXDEV}:
            hint = "It is a mount point, which cannot be replaced as a whole: use a folder below it."
        raise FolderError(f"{folder} cannot be written to: {exc.strerror} ({exc.filename})", hint=hint) from exc


@contextmanager
def _sibling(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, removed at the end with whatever lies there then. It is locked while it is in use, so that those of
    dead processes can be told and swept."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=_NEW_FOLDER)
    for dead in folder.parent.glob(f".{_escaped(folder.name)}{_MARK}[0-9a-f]*"):
        _sweep(dead)
    new = folder.parent / f".{folder.name}{_MARK}{secrets.token_hex(8)}"
    new.mkdir(mode=_NEW_FOLDER)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, new, ignore_errors=True)
        fd = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield new


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _sweep(dead: Path) -> None:
    with suppress(OSError):
        fd = os.open(dead, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(dead, ignore_errors=True)
        finally:
            os.close(fd)


def _copy_folders(old: Path, new: Path, chosen: Plan) -> None:
    """Folders as they were, the empty ones too; in mode `replace` those that only held what goes are not made."""
    _like(new, old.stat())
    gone = {parent for name in chosen.remove for parent in Path(name).parents}
    stay = {parent for name in (*chosen.keep, *chosen.write) for parent in Path(name).parents}
    for path, names, _ in os.walk(old):
        below = Path(path).relative_to(old)
        for name in list(names):
            inner = below / name
            if (old / inner).is_symlink() or str(inner) in chosen.write or (inner in gone and inner not in stay):
                names.remove(name)
                continue
            (new / inner).mkdir(mode=_NEW_FOLDER)
            _like(new / inner, (old / inner).stat())


def _like(path: Path, was: os.stat_result) -> None:
    """Give a new file or folder the owner and the mode of the one that it replaces."""
    now = path.stat()
    if (now.st_uid, now.st_gid) != (was.st_uid, was.st_gid):
        with suppress(PermissionError):
            os.chown(path, was.st_uid, was.st_gid)
    path.chmod(stat.S_IMODE(was.st_mode))


def _stay(old: Path, new: Path) -> None:
    """The same file in the new folder: a second link to it; a copy where the file system has none."""
    try:
        os.link(old, new, follow_symlinks=False)
    except OSError as exc:
        if exc.errno not in {*_NOT_SUPPORTED, errno.EPERM, errno.EMLINK}:
            raise
        shutil.copy2(old, new, follow_symlinks=False)
        if not new.is_symlink():
            _like(new, old.stat())
            _sync(new)


def _write(new: Path, name: str, file: File, *, like: Path) -> None:
    path = new / name
    _make_folders(new, path.parent, like=like)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _NEW_FILE)
    except FileExistsError as exc:
        raise FolderError(
            f"{name!r} is there already: this file system takes names for the same that differ in capitals alone",
            hint="Nothing was done. Restore to another file system, or rename one of the two and save again.",
        ) from exc
    with os.fdopen(fd, "wb") as out:
        out.write(file.content)
    before = _stat(like / name)
    if before is not None and stat.S_ISREG(before.st_mode):
        _like(path, before)
    else:
        _give(path, like)
    mode = stat.S_IMODE(path.stat().st_mode)
    # Whoever may read it may then execute it, as `chmod +x` has it.
    path.chmod(mode | (mode & 0o444) >> 2 if file.executable else mode & ~0o111)


def _make_folders(new: Path, folder: Path, *, like: Path) -> None:
    if folder == new or folder.is_dir():
        return
    _make_folders(new, folder.parent, like=like)
    folder.mkdir(mode=_NEW_FOLDER)
    _give(folder, like)


def _give(path: Path, like: Path) -> None:
    """To the owner of the folder: who restores may be root, and the agent not."""
    if owner := _stat(like):
        now = path.stat()
        if (now.st_uid, now.st_gid) != (owner.st_uid, owner.st_gid):
            with suppress(PermissionError):
                os.chown(path, owner.st_uid, owner.st_gid)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:
        return None


def _sync_all(new: Path, written: Iterable[str]) -> None:
    """Files that were written, and every folder. Many at once: a disk that is asked by several syncs them together."""
    with ThreadPoolExecutor(_SYNCERS, thread_name_prefix="coldstore-sync") as pool:
        for _ in pool.map(_sync, [*(new / name for name in written), *(Path(path) for path, _, _ in os.walk(new))]):
            pass


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# --- exchange ----------------------------------------------------------------------------------------------------------------------


def _swap(new: Path, folder: Path, *, there: bool) -> None:
    """`new` becomes `folder`; what was there lies where `new` was, to be removed. One that came into being meanwhile is an error."""
    if not there:
        new.rename(folder)
    elif not _exchange(new, folder):
        folder.rename(_aside(folder))
        new.rename(folder)
        shutil.rmtree(_aside(folder), ignore_errors=True)
    _sync(folder.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Whether this system can, and then it is done."""
    if _renameat2 is None:
        return False
    if _renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NOT_SUPPORTED:
        return False
    raise OSError(code, os.strerror(code), os.fspath(other))


def _aside(folder: Path) -> Path:
    return folder.parent / f".{folder.name}{_MARK}old"


def _put_back(folder: Path) -> None:
    """After a crash between the two renames of a system that cannot exchange."""
    aside = _aside(folder)
    if aside.is_dir():
        if os.path.lexists(folder):
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(folder)


try:
    _renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    _renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    _renameat2.restype = ctypes.c_int
except (OSError, AttributeError):
    _renameat2 = None  # type: ignore[assignment]
