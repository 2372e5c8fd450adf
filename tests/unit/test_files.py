"""Folders of files: read whole, put in place whole, never outside."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstore.errors import ConfigError, FolderError, RestoreConflict, SuspectSnapshot, TargetNotEmpty
from coldstore.files import difference, place
from coldstore.files.place import Placing, plan
from coldstore.files.tree import File, check_names, marks, read_tree
from coldstore.files.watch import Watch

MERGE, UPDATE, SKIP = Placing(), Placing("merge", "update"), Placing("merge", "skip")
FRESH, REPLACE = Placing("fresh"), Placing("replace")


def texts(**files: str) -> dict[str, File]:
    return {name.replace("__", "/"): File(text.encode()) for name, text in files.items()}


def put(folder: Path, files: dict[str, File], how: Placing = UPDATE) -> None:
    place.place(plan(folder, files, how))


def siblings(folder: Path) -> list[str]:
    return [p.name for p in folder.parent.iterdir() if p != folder]


# --- reading -----------------------------------------------------------------------------------------------------------------------


def test_what_is_kept_of_a_file(tmp_path):
    folder = tmp_path / "memory"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "MEMORY.md").write_text("# naïve ✓\n")
    (folder / "a" / "b" / "raw").write_bytes(bytes(range(256)))
    (folder / "empty").touch()
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    tree = read_tree(folder)
    assert tree.files == {
        "MEMORY.md": File("# naïve ✓\n".encode()),
        "a/b/raw": File(bytes(range(256))),
        "empty": File(b""),
        "run.sh": File(b"#!/bin/sh\n", executable=True),
    }
    assert tree.left_out == {}
    assert tree.settled


def test_links_and_sockets_are_named_and_not_followed(tmp_path):
    folder, secret = tmp_path / "memory", tmp_path / "secret"
    folder.mkdir()
    secret.mkdir()
    (secret / "key").write_text("nobody's business")
    (folder / "file-link").symlink_to(secret / "key")
    (folder / "folder-link").symlink_to(secret)
    (folder / "broken").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(folder / "socket"))
        tree = read_tree(folder)
    assert tree.files == {}
    link = "a symbolic link"
    assert tree.left_out == {"broken": link, "file-link": link, "folder-link": link, "pipe": "a pipe", "socket": "a socket"}


@pytest.mark.parametrize("shut", ["shut", "inner", "."])
def test_what_cannot_be_read_is_an_error(shut):
    """As a user who may not; root may read everything."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "note").write_text("x")
        (folder / "shut").write_text("x")
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("x")
        (folder / shut).chmod(0o444 if shut == "inner" else 0)  # to see names is not enough
        told = _told_as_nobody(folder)
        folder.chmod(0o755)
    assert " cannot be read: Permission denied" in told
    assert "Nothing was saved" in told


def _told_as_nobody(folder: Path) -> str:
    script = textwrap.dedent(
        f"""
        import os
        from pathlib import Path
        import coldstore.files.tree as t
        from coldstore.errors import FolderError
        os.getuid() or os.setuid(65534)
        try:
            t.read_tree(Path({str(folder)!r}))
        except FolderError as exc:
            print(exc, exc.hint)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    return done.stdout


def test_a_name_that_is_not_utf8_is_an_error(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9")).touch()
    with pytest.raises(FolderError, match=r"not UTF-8: b'caf\\xe9'"):
        read_tree(tmp_path)


def test_no_folder(tmp_path):
    with pytest.raises(FolderError, match="there is no folder"):
        read_tree(tmp_path / "nothing")


def test_a_folder_that_is_written_to_all_the_time_says_so(tmp_path):
    (tmp_path / "log").write_text("")
    stop = threading.Event()

    def write() -> None:
        with (tmp_path / "log").open("a") as log:
            while not stop.is_set():
                log.write("line\n")
                log.flush()

    for number in range(500):  # so that reading takes long enough to be disturbed
        (tmp_path / f"{number}").write_text("x")
    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert not read_tree(tmp_path).settled
    finally:
        stop.set()
        writer.join()
    assert read_tree(tmp_path).settled


# --- names -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "/", "/etc/passwd", "..", "../x", "a/../../x", "a//b", "a/", "./a", "a\0b", "\ud800"])
def test_a_name_that_leaves_its_folder(name, tmp_path):
    for how in (MERGE, UPDATE, SKIP, FRESH, REPLACE):
        with pytest.raises(FolderError, match="cannot be the name of a file"):
            plan(tmp_path / "memory", {"fine": File(b""), name: File(b"x")}, how)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_a_folder_too(tmp_path):
    with pytest.raises(FolderError, match="'a' is a file and, because of 'a/b/c', a folder as well"):
        plan(tmp_path / "memory", texts(a="", a__b__c=""), FRESH)


@settings(deadline=None)  # a disk has its own
@given(st.text())
def test_whatever_the_name_it_stays_inside_or_is_refused(name):
    with tempfile.TemporaryDirectory() as outside:
        folder = Path(outside, "memory")
        try:
            put(folder, {name: File(b"content")})
        except FolderError:
            assert os.listdir(outside) in ([], ["memory"])  # noqa: PTH208 — names as they are
            return
        assert os.listdir(outside) == ["memory"]  # noqa: PTH208
        assert read_tree(folder).files == {name: File(b"content")}


def test_names_that_differ_only_by_case_are_two_files_here(tmp_path):
    """Linux tells them apart. Where a file system does not, the second is refused: a file is never written over another of the same
    restore."""
    put(tmp_path / "memory", texts(Note="one", note="two"))
    assert read_tree(tmp_path / "memory").files == texts(Note="one", note="two")
    new = tmp_path / "new"
    new.mkdir()
    place._write(new, "note", File(b"one"), like=tmp_path / "memory")
    with pytest.raises(FolderError, match="differ in capitals alone"):
        place._write(new, "note", File(b"two"), like=tmp_path / "memory")


# --- putting in place --------------------------------------------------------------------------------------------------------------

NAMES = st.text(st.sampled_from("abAé ."), min_size=1, max_size=3).filter(lambda n: n not in {".", ".."})
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
FILES = st.dictionaries(PATHS, st.builds(File, st.binary(max_size=20), st.booleans()), max_size=6)


def fits(files: dict[str, File]) -> bool:
    try:
        check_names(files)
    except FolderError:
        return False
    return True


@settings(deadline=None, max_examples=40)
@given(FILES.filter(fits), FILES.filter(fits))
def test_every_mode_does_what_it_says(there, wanted):
    for how in (MERGE, UPDATE, SKIP, FRESH, REPLACE):
        with tempfile.TemporaryDirectory() as outside:
            folder = Path(outside, "memory")
            put(folder, there, REPLACE)
            assert read_tree(folder).files == there
            expected = {
                "merge fail": {**there, **wanted},
                "merge update": {**there, **wanted},
                "merge skip": {**wanted, **there},
                "fresh fail": wanted,
                "replace fail": wanted,
            }[f"{how.mode} {how.on_conflict}"]
            try:
                put(folder, wanted, how)
            except (RestoreConflict, TargetNotEmpty):
                assert how != REPLACE
                if how == FRESH:
                    assert there
                elif how != MERGE or all(there.get(n, f) == f for n, f in wanted.items()):
                    assert not fits({**there, **wanted})
                expected = there
            assert read_tree(folder).files == expected
            assert siblings(folder) == []


def test_without_a_change_nothing_is_touched(tmp_path):
    folder = tmp_path / "memory"
    put(folder, texts(a="1", b__c="2"))
    before, inode = marks(folder), folder.stat().st_ino
    put(folder, texts(a="1", b__c="2"))
    assert (marks(folder), folder.stat().st_ino) == (before, inode)


def test_files_that_stay_keep_their_inode_times_and_mode(tmp_path):
    folder = tmp_path / "memory"
    put(folder, texts(a="1", b="2"))
    (folder / "mine").write_text("mine")
    (folder / "mine").chmod(0o640)
    os.utime(folder / "mine", ns=(1, 2))
    before = marks(folder)
    put(folder, texts(a="1", b="new"))
    after = marks(folder)
    assert {n: after[n] for n in ("a", "mine")} == {n: before[n] for n in ("a", "mine")}
    assert (folder / "b").read_text() == "new"


def test_modes_of_what_is_new_and_of_what_was_there(tmp_path):
    folder = tmp_path / "memory"
    folder.mkdir(mode=0o755)
    (folder / "old").write_text("x")
    (folder / "old").chmod(0o644)
    put(folder, {"old": File(b"y", executable=True), "new": File(b""), "sub/run": File(b"", executable=True)})
    modes = {str(p.relative_to(tmp_path)): stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*")}
    assert modes == {
        "memory": 0o755,
        "memory/old": 0o755,
        "memory/new": 0o600,
        "memory/sub": 0o700,
        "memory/sub/run": 0o700,
    }
    put(folder, {"old": File(b"y")})
    assert stat.S_IMODE((folder / "old").stat().st_mode) == 0o644


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_what_root_restores_belongs_to_the_folders_owner(tmp_path):
    folder = tmp_path / "memory"
    folder.mkdir()
    (folder / "theirs").write_text("x")
    os.chown(folder / "theirs", 1234, 1235)
    os.chown(folder, 65534, 65534)
    put(folder, texts(theirs="new", fresh="", a__b=""))
    owners = {str(p.relative_to(tmp_path)): (p.stat().st_uid, p.stat().st_gid) for p in tmp_path.rglob("*")}
    nobody = (65534, 65534)
    assert owners == {"memory": nobody, "memory/theirs": (1234, 1235), "memory/fresh": nobody, "memory/a": nobody, "memory/a/b": nobody}


def test_links_and_empty_folders_stay_and_are_never_written_through(tmp_path):
    folder, outside = tmp_path / "memory", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (outside / "x").write_text("untouched")
    (folder / "link").symlink_to(outside)
    (folder / "to-x").symlink_to(outside / "x")
    (folder / "empty").mkdir()
    for how in (UPDATE, REPLACE):
        put(folder, texts(a=how.mode), how)
        assert (folder / "link").readlink() == outside
        assert (folder / "to-x").readlink() == outside / "x"
        assert (folder / "empty").is_dir()
    with pytest.raises(RestoreConflict, match="another 'to-x'"):
        plan(folder, texts(**{"to-x": "new"}), MERGE)
    with pytest.raises(RestoreConflict, match=r"'link' of .* is in the way"):
        plan(folder, texts(link__x="new"), UPDATE)
    put(folder, texts(**{"to-x": "new"}), UPDATE)
    put(folder, {"to-x": File(b"new"), "link/x": File(b"inside")}, REPLACE)
    assert (outside / "x").read_text() == "untouched"
    assert not (folder / "link").is_symlink()
    assert (folder / "link" / "x").read_text() == "inside"


def test_a_folder_reached_through_a_link_is_replaced_where_it_is(tmp_path):
    real = tmp_path / "real"
    put(real, texts(a="1"))
    (tmp_path / "memory").symlink_to(real)
    put(tmp_path / "memory", texts(a="2"))
    assert (tmp_path / "memory").is_symlink()
    assert (real / "a").read_text() == "2"


def test_a_folder_that_is_written_to_meanwhile_is_left_alone(tmp_path):
    folder = tmp_path / "memory"
    put(folder, texts(a="1"))
    chosen = plan(folder, texts(a="2"), UPDATE)
    (folder / "later").write_text("by the agent")
    with pytest.raises(FolderError, match="written to meanwhile"):
        place.place(chosen)
    assert read_tree(folder).files == texts(a="1", later="by the agent")
    assert siblings(folder) == []


def test_what_came_into_being_meanwhile_is_left_alone(tmp_path):
    folder = tmp_path / "memory"
    chosen = plan(folder, texts(a="2"), FRESH)
    put(folder, texts(b="1"))
    with pytest.raises(FolderError, match="cannot be written to"):
        place.place(chosen)
    assert read_tree(folder).files == texts(b="1")


def test_a_name_that_is_too_long_changes_nothing(tmp_path):
    folder = tmp_path / "memory"
    put(folder, texts(a="1"))
    with pytest.raises(FolderError, match="File name too long"):
        put(folder, {"a": File(b"2"), "n" * 300: File(b"")})
    assert read_tree(folder).files == texts(a="1")
    assert siblings(folder) == []


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "memory").write_text("a file")
    with pytest.raises(FolderError, match="is no folder"):
        plan(tmp_path / "memory", texts(a=""), FRESH)


_ON_A_MOUNT = """
import sys
from pathlib import Path
from coldstore.errors import FolderError
from coldstore.files.place import Placing, place, plan
from coldstore.files.tree import File

(Path(sys.argv[1]) / "mine").write_text("mine")
try:
    place(plan(Path(sys.argv[1]), {"a": File(b"x")}, Placing()))
except FolderError as exc:
    print(exc.hint, [p.name for p in Path(sys.argv[1]).iterdir()], len(list(Path(sys.argv[1]).parent.iterdir())))
"""


def test_a_mount_point_is_refused(tmp_path):
    folder = tmp_path / "memory"
    folder.mkdir()
    mount = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', folder]
    if subprocess.run([*mount, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine does not let us mount anything")
    command = [*mount, sys.executable, "-c", _ON_A_MOUNT, folder]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout == "It is a mount point, which cannot be replaced as a whole: use a folder below it. ['mine'] 1\n"


def test_fresh_wants_no_files(tmp_path):
    put(tmp_path / "memory", texts(a="1"))
    with pytest.raises(TargetNotEmpty):
        plan(tmp_path / "memory", texts(b="1"), FRESH)


def test_nonsense_modes():
    with pytest.raises(ConfigError):
        Placing("upsert")


_CRASHING = """
import os, sys
from pathlib import Path
from coldstore.files import place
from coldstore.files.tree import File

folder, at = Path(sys.argv[1]), int(sys.argv[2])
if sys.argv[3] == "without exchange":
    place._renameat2 = None
calls = 0
def audit(event, arguments):
    # Every step that changes a file system is an event: the process dies right before the `at`th.
    global calls
    if event in {"os.mkdir", "os.rename", "os.link", "os.chmod", "os.rmdir", "os.remove", "shutil.rmtree"} or (event == "open" and arguments[2] & os.O_CREAT):
        calls += 1
        if calls == at:
            os.kill(os.getpid(), 9)
sys.addaudithook(audit)
wanted = {f"{n}": File(b"new") for n in range(4)} | {"sub/x": File(b"new")}
place.place(place.plan(folder, wanted, place.Placing("replace")))
"""


@pytest.mark.parametrize("how", ["with exchange", "without exchange"])
def test_killed_at_any_step_the_folder_is_the_old_or_the_new_one(tmp_path, how):
    old = {**texts(**{f"{n}": "old" for n in range(3)}), "sub/y": File(b"old")}
    new = {**texts(**{f"{n}": "new" for n in range(4)}), "sub/x": File(b"new")}
    outcomes = []
    for at in range(1, 200):
        folder = tmp_path / str(at) / "memory"
        put(folder, old)
        done = subprocess.run([sys.executable, "-c", _CRASHING, folder, str(at), how], check=False, cwd=Path(__file__).parents[2])
        if how == "with exchange":
            assert read_tree(folder).files in (old, new), at
        plan(folder, {}, MERGE)  # whoever comes next puts right what was left
        outcomes.append(read_tree(folder).files)
        assert outcomes[-1] in (old, new), at
        put(folder, {**new, "more": File(b"")})
        assert siblings(folder) == [], at
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    assert outcomes[0] == old
    assert outcomes[-1] == new
    assert len(outcomes) > 10


def test_the_folder_of_a_living_restore_is_not_swept(tmp_path):
    folder = tmp_path / "memory"
    put(folder, texts(a="1"))
    with place._sibling(folder) as alive:
        (alive / "half").write_text("in the making")
        put(folder, texts(a="2"))
        assert (alive / "half").is_file()
    assert siblings(folder) == []


# --- the difference ----------------------------------------------------------------------------------------------------------------


def test_the_difference(tmp_path):
    folder = tmp_path / "memory"
    put(folder, {**texts(note="one\ntwo\n", gone="x", same="="), "raw": File(b"\xff\x00")})
    (folder / "link").symlink_to("note")
    wanted = {**texts(note="one\n2\n", same="=", new="!"), "raw": File(b"\xfe\x00\x01")}
    chosen = plan(folder, wanted, REPLACE)
    assert difference.as_dict(chosen) == {
        "folder": str(folder),
        "added": ["new"],
        "changed": ["note", "raw"],
        "removed": ["gone"],
        "kept": [],
        "unchanged": 1,
        "leftAlone": {"link": "a symbolic link"},
    }
    assert list(difference.lines(chosen)) == [
        "+ new",
        "~ note",
        "~ raw",
        "- gone",
        "",
        "--- there/note",
        "+++ snapshot/note",
        "@@ -1,2 +1,2 @@",
        " one",
        "-two",
        "+2",
        "",
        "raw: 2 bytes would become 3",
    ]
    assert difference.as_dict(plan(folder, wanted, SKIP))["kept"] == ["gone", "note", "raw"]
    executable = list(difference.lines(plan(folder, {"same": File(b"=", executable=True)}, UPDATE)))
    assert executable == ["~ same", "", "same: would become executable"]


# --- watching ----------------------------------------------------------------------------------------------------------------------


class Watched:
    """A watch under way, and what it saved."""

    def __init__(self, folder: Path, *, known=lambda: None, broken=lambda: None, **times: float) -> None:
        self.saves: list[tuple[dict[str, File], str | None]] = []
        self.said: list[str] = []
        self.changed = threading.Condition()
        self._broken = broken
        self.watch = Watch(folder, self._save, known, self._say, **{"poll": 0.005, "quiet": 0.01, **times})
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.watch.run()
        except FolderError as exc:
            self.error = exc

    def _save(self, tree, label):
        self._broken()
        with self.changed:
            self.saves.append((tree.files, label))
            self.changed.notify_all()

    def _say(self, sentence: str) -> None:
        with self.changed:
            self.said.append(sentence)
            self.changed.notify_all()

    def until(self, condition) -> None:
        with self.changed:
            self.changed.wait_for(condition)

    def end(self) -> None:
        self.watch.stop()
        self.thread.join()


def test_a_change_is_saved_once_it_is_quiet(tmp_path):
    folder = tmp_path / "memory"
    put(folder, texts(a="1"))
    watched = Watched(folder, known=lambda: texts(a="1"))
    (folder / "b").write_text("2")
    watched.until(lambda: watched.saves and watched.saves[-1][0] == texts(a="1", b="2"))
    watched.end()
    assert {label for _, label in watched.saves} == {None}
    assert watched.said == []


def test_what_is_not_saved_at_the_end_is_saved_then(tmp_path):
    folder = tmp_path / "memory"
    put(folder, texts(a="1"))
    watched = Watched(folder, quiet=1e6, at_most=1e6)
    watched.end()
    assert watched.saves == [(texts(a="1"), "shutdown")]
    watched = Watched(folder, known=lambda: texts(a="1"), quiet=1e6, at_most=1e6)
    watched.end()
    assert watched.saves == []


def test_changes_without_end_are_saved_nevertheless(tmp_path):
    folder = tmp_path / "memory"
    put(folder, {})
    watched = Watched(folder, quiet=1e6, at_most=0.05)
    number = 0
    while not watched.saves:
        number += 1
        (folder / "log").write_text(str(number))
    watched.end()
    assert watched.saves[0][1] is None


def test_a_save_that_fails_is_said_and_tried_again(tmp_path):
    folder = tmp_path / "memory"
    put(folder, texts(a="1"))
    tries = []

    def broken() -> None:
        tries.append(1)
        if len(tries) < 4:
            raise FolderError("the store is away")

    watched = Watched(folder, broken=broken)
    watched.until(lambda: watched.saves)
    watched.end()
    assert watched.said == ["not saved, and tried again: the store is away"]
    assert watched.saves == [(texts(a="1"), None)]


def test_a_folder_that_vanishes_is_not_an_empty_memory(tmp_path):
    folder = tmp_path / "memory"
    put(folder, texts(a="1"))
    watched = Watched(folder, known=lambda: texts(a="1"))
    folder.rename(tmp_path / "away")
    watched.until(lambda: watched.said)
    (tmp_path / "away").rename(folder)
    (folder / "b").write_text("2")
    watched.until(lambda: watched.saves)
    watched.end()
    assert watched.said == [f"there is no folder {folder}"]
    assert all(files for files, _ in watched.saves)


def test_a_suspect_save_is_said_and_not_repeated(tmp_path):
    folder = tmp_path / "memory"
    put(folder, texts(a="1"))
    tries = []

    def suspect() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise SuspectSnapshot("stored, but looks wrong")

    watched = Watched(folder, broken=suspect)
    watched.until(lambda: watched.said)
    (folder / "b").write_text("2")
    watched.until(lambda: watched.saves)
    watched.end()
    assert watched.said == ["stored, but looks wrong"]
    assert len(tries) == len(watched.saves) + 1


def test_a_folder_that_is_gone_at_the_end_is_an_error(tmp_path):
    folder = tmp_path / "memory"
    put(folder, texts(a="1"))
    watched = Watched(folder, known=lambda: texts(a="1"))
    folder.rename(tmp_path / "away")
    watched.until(lambda: watched.said)
    watched.end()
    assert "there is no folder" in str(watched.error)
