"""What only a disk can do: fill up, forbid, be shared by processes, lose a process in mid-write, have no hard links."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from coldstore.errors import AccessDenied, InvalidKey, ObjectExists, StoreError, StoreFull
from coldstore.storage import local
from coldstore.storage.local import LocalStore
from tests.contract.test_store import blob, eventually, keys, put

ROOT = str(Path(__file__).parents[2])


def temporary_files(folder: Path) -> list[Path]:
    return list(folder.rglob(".tmp-*"))


def script(code: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": ROOT}
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), *arguments], env=environment, stdout=subprocess.PIPE, text=True)


def test_of_eight_processes_one_wins(tmp_path):
    racers = [
        script(
            """
            import os, sys, time
            from coldstore.errors import ObjectExists
            from coldstore.storage.local import LocalStore
            store = LocalStore(sys.argv[1])
            open(sys.argv[2] + "/ready-" + sys.argv[3], "w").close()
            while not os.path.exists(sys.argv[2] + "/go"):
                time.sleep(0.001)
            for turn in range(10):
                try:
                    with store.create(f"2026-01-01/{turn}") as writer:
                        writer.write(sys.argv[3].encode() * 100_000)
                    print(turn)
                except ObjectExists:
                    pass
            """,
            str(tmp_path / "root"),
            str(tmp_path),
            str(number),
        )
        for number in range(8)
    ]
    eventually(lambda: len(list(tmp_path.glob("ready-*"))) == 8)
    (tmp_path / "go").touch()
    won = [line for racer in racers for line in racer.communicate()[0].split()]
    assert sorted(won, key=int) == [str(turn) for turn in range(10)]
    store = LocalStore(str(tmp_path / "root"))
    assert all(len(set(store.read(f"2026-01-01/{turn}"))) == 1 for turn in range(10))
    assert temporary_files(tmp_path) == []


def test_a_killed_process_leaves_nothing_visible(tmp_path):
    writer = script(
        """
        import sys, time
        from coldstore.storage.local import LocalStore
        with LocalStore(sys.argv[1]).create("a/k") as writer:
            writer.write(b"x" * 1_000_000)
            print("written", flush=True)
            time.sleep(600)
        """,
        str(tmp_path),
    )
    assert writer.stdout.readline() == "written\n"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    store = LocalStore(str(tmp_path))
    assert len(temporary_files(tmp_path)) == 1
    assert (keys(store), keys(store, "a/"), keys(store, "a/.tmp-")) == ([], [], [])
    put(store, "a/k", b"again")
    assert keys(store) == ["a/k"]


def test_memory_is_private(tmp_path):
    store = LocalStore(str(tmp_path / "new" / "root"))
    put(store, "a/k")
    modes = {path: stat.S_IMODE((tmp_path / path).stat().st_mode) for path in ("new", "new/root", "new/root/a", "new/root/a/k")}
    assert modes == {"new": 0o700, "new/root": 0o700, "new/root/a": 0o700, "new/root/a/k": 0o600}


def test_the_root_is_made_on_the_first_write_only(tmp_path):
    store = LocalStore(str(tmp_path / "root"))
    assert (keys(store), store.folders()) == ([], [])
    store.delete("k")
    assert not (tmp_path / "root").exists()


def test_a_full_disk(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system; the limit on a file's size is tried below")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"this machine forbids mounting: {mounted.stderr.strip()}")
    try:
        store = LocalStore(str(folder))
        with pytest.raises(StoreFull) as caught:
            put(store, "a/k", blob(2_000_000))
        assert caught.value.hint
        with pytest.raises(StoreFull):
            store.replace("a/k", blob(2_000_000))
        assert (keys(store), temporary_files(folder)) == ([], [])
        put(store, "a/k", blob(500_000))
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_limit_on_the_size_of_files(tmp_path):
    out, _ = script(
        """
        import resource, sys
        from coldstore.errors import StoreFull
        from coldstore.storage.local import LocalStore
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            with LocalStore(sys.argv[1]).create("a/k") as writer:
                writer.write(b"x" * 50_000)
                writer.write(b"x" * 70_000)
        except StoreFull as error:
            print(error.code, error.key)
        """,
        str(tmp_path),
    ).communicate()
    assert out == "StoreFull a/k\n"
    assert (keys(LocalStore(str(tmp_path))), temporary_files(tmp_path)) == ([], [])


def test_a_write_error_that_the_caller_swallowed_publishes_nothing(tmp_path, monkeypatch):
    store, real = LocalStore(str(tmp_path)), os.write

    def full(fd: int, data: memoryview) -> int:
        if len(data) > 100:
            real(fd, data[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data)

    def careless() -> None:
        with store.create("k") as writer:
            writer.write(b"good")
            with pytest.raises(StoreFull):
                writer.write(b"x" * 1000)
            writer.write(b"good again")

    monkeypatch.setattr(local.os, "write", full)
    with pytest.raises(StoreError, match="earlier write"):
        careless()
    assert (keys(store), temporary_files(tmp_path)) == ([], [])


def test_short_writes_are_continued(tmp_path, monkeypatch):
    store, real = LocalStore(str(tmp_path)), os.write
    monkeypatch.setattr(local.os, "write", lambda fd, data: real(fd, data[:7]))
    put(store, "k", blob(1000))
    assert store.read("k") == blob(1000)


def test_a_folder_that_may_not_be_written(scratch):
    folder = scratch / "root"
    put(LocalStore(str(folder)), "k", b"there")
    was_root = os.geteuid() == 0
    if was_root:
        for path in (folder, folder / "k"):
            os.chown(path, 65534, 65534)
    folder.chmod(0o500)
    if was_root:
        # Root may do everything: become nobody for a moment.
        os.seteuid(65534)
    try:
        store = LocalStore(str(folder))
        assert store.read("k") == b"there"
        for call in (lambda: put(store, "new"), lambda: put(store, "sub/new"), lambda: store.replace("k", b""), lambda: store.delete("k")):
            with pytest.raises(AccessDenied) as caught:
                call()
            assert caught.value.hint
        (folder / "k").chmod(0)
        with pytest.raises(AccessDenied):
            store.read("k")
    finally:
        if was_root:
            os.seteuid(0)
        folder.chmod(0o700)
    assert keys(store) == ["k"]


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_disk_without_hard_links(tmp_path, monkeypatch, code):
    def no_links(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(local.os, "link", no_links)
    store = LocalStore(str(tmp_path))
    put(store, "a/k", b"first")
    with pytest.raises(ObjectExists):
        put(store, "a/k", b"second")
    assert (store.read("a/k"), temporary_files(tmp_path)) == (b"first", [])
    monkeypatch.setattr(local, "_renameat2", None)
    with pytest.raises(StoreError, match="neither link"):
        put(store, "a/other")
    assert (keys(store), temporary_files(tmp_path)) == (["a/k"], [])


def test_a_lost_reply_to_a_link_is_no_conflict(tmp_path, monkeypatch):
    real = os.link

    def twice(source: str, final: str, **options: bool) -> None:
        real(source, final, **options)
        real(source, final, **options)

    monkeypatch.setattr(local.os, "link", twice)
    store = LocalStore(str(tmp_path))
    put(store, "k", b"ours")
    assert (store.read("k"), temporary_files(tmp_path)) == (b"ours", [])


def test_everything_is_synced_before_it_is_visible(tmp_path, monkeypatch):
    """The file before it has its name, and each new folder's own entry as well as the object's."""
    events: list[tuple[str, str]] = []
    real_sync, real_link = os.fsync, os.link

    def sync(fd: int) -> None:
        events.append(("sync", str(Path(f"/proc/self/fd/{fd}").readlink()).replace(str(tmp_path), "").partition(".tmp-")[0]))
        real_sync(fd)

    def link(source: str, final: str, **options: bool) -> None:
        events.append(("link", final.replace(str(tmp_path), "")))
        real_link(source, final, **options)

    monkeypatch.setattr(local.os, "fsync", sync)
    monkeypatch.setattr(local.os, "link", link)
    put(LocalStore(str(tmp_path / "root")), "a/b/k")
    at = events.index(("link", "/root/a/b/k"))
    assert {path for kind, path in events[:at] if kind == "sync"} == {"", "/root", "/root/a", "/root/a/b/"}
    assert events[at + 1 :] == [("sync", "/root/a/b")]


def test_a_folder_deleted_beneath_a_writer_is_made_again(tmp_path):
    store = LocalStore(str(tmp_path))
    for turn in range(3):
        put(store, "a/b/k", str(turn).encode())
        LocalStore(str(tmp_path)).delete("a/b/k")
        assert not (tmp_path / "a").exists()


def test_names_that_a_disk_cannot_hold(tmp_path):
    store = LocalStore(str(tmp_path))
    put(store, "a" * 255)
    with pytest.raises(InvalidKey):
        put(store, "a" * 256)
    put(store, "file")
    with pytest.raises(StoreError):
        put(store, "file/below")
    with pytest.raises(InvalidKey):
        put(store, "half a pair \ud83d")


def test_names_in_another_encoding_are_not_listed(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9")).write_bytes(b"x")
    (tmp_path / os.fsdecode(b"folder-\xe9")).mkdir()
    store = LocalStore(str(tmp_path))
    put(store, "café")
    assert (keys(store), store.folders()) == (["café"], [])


def test_links_below_the_root_are_not_listed(tmp_path):
    store = LocalStore(str(tmp_path / "root"))
    put(store, "a/k")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("x")
    (tmp_path / "root" / "out").symlink_to(tmp_path / "outside")
    (tmp_path / "root" / "loop").symlink_to(tmp_path / "root")
    assert (keys(store), store.folders()) == (["a/k"], ["a"])


def test_a_listing_of_many_files_is_complete_and_in_order(tmp_path):
    names = [f"d{n % 7}/{n % 11}-x/{n}" for n in range(20_000)]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert keys(LocalStore(str(tmp_path))) == sorted(names)
