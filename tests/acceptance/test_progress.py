"""A terminal sees a bar with rows, bytes and rate; a pipe sees the result and nothing else."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.acceptance.conftest import take
from tests.acceptance.program import Program, execute, remember, secrets_in

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_a_terminal(program: Program, arguments: Sequence[str | Path], *, env: dict[str, str], stdout: int | None = None) -> str:
    """What a terminal of 160 columns is sent, without the escape sequences."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    try:
        process = program.start(*arguments, env={"TERM": "xterm-256color", **env}, stdin=theirs, stdout=stdout or theirs, stderr=theirs)
    finally:
        os.close(theirs)
    seen = b""
    while True:
        try:
            data = os.read(ours, 1 << 16)
        except OSError:  # Linux: nobody has the other end any more
            break
        if not data:
            break
        seen += data
    os.close(ours)
    process.wait()
    assert process.returncode == 0, seen
    assert secrets_in(seen) == []
    return ESCAPE.sub("", seen.decode())


@pytest.fixture
def much(memory: str) -> str:
    """20 MB: a bar is drawn ten times a second."""
    remember(memory, "uid_big", days=15_000, padding=1200)
    return memory


@pytest.mark.parametrize("command", ["snapshot", "each user", "restore", "verify"])
def test_a_bar_on_a_terminal(started, much, target, command):
    stored = take(much, started.folder / "coldstore-data")
    arguments = {
        "snapshot": ["snapshot"],
        "each user": ["snapshot", "--each-user"],
        "restore": ["restore", "--to", target],
        "verify": ["verify", stored.info.id, "--deep"],
    }[command]
    seen = on_a_terminal(started, arguments, env={"DATABASE_URL": much})
    assert "━" in seen
    assert re.search(r"\d [kM]B/s|/s", seen)
    assert re.search(r"[\d.]+(/[\d.?]+)? (MB|kB|bytes)", seen)
    assert re.search(r"[1-9][\d,]* rows", seen)
    assert "Traceback" not in seen


def test_none_where_json_is_asked_for(started, memory):
    seen = on_a_terminal(started, ["snapshot", "--json"], env={"DATABASE_URL": memory})
    assert seen.startswith('{"id":')
    assert seen.count("\n") == 1


def test_none_in_a_pipe(cold, much, target):
    env = {"DATABASE_URL": much}
    for arguments in (["snapshot"], ["snapshot", "--each-user"], ["restore", "--to", target], ["verify", "--all", "--deep"], ["list"]):
        result = cold(*arguments, env=env)
        assert result.err == ""
        assert "\x1b" not in result.out
        assert "\r" not in result.out
        assert "━" not in result.out


def test_none_where_only_errors_go_to_the_terminal(started, memory):
    """`coldstore snapshot > file` by hand: the file has the result, the terminal nothing."""
    with (started.folder / "out").open("wb") as file:
        seen = on_a_terminal(started, ["snapshot"], env={"DATABASE_URL": memory}, stdout=file.fileno())
    assert seen == ""
    assert "sha256" in (started.folder / "out").read_text()


def test_what_a_person_must_know_is_said_in_a_pipe_too(cold, memory):
    """Rows of nobody are in no user's document."""
    execute(memory, "ALTER TABLE daily_memories ALTER uid DROP NOT NULL", "UPDATE daily_memories SET uid = NULL WHERE uid = 'uid_bob'")
    result = cold("snapshot", "--each-user", env={"DATABASE_URL": memory})
    assert result.err == "note: 3 rows of daily_memories have no uid: only an all-user snapshot holds them\n"


def test_a_dumb_terminal(started, memory):
    seen = on_a_terminal(started, ["snapshot"], env={"DATABASE_URL": memory, "TERM": "dumb", "NO_COLOR": "1"})
    assert "sha256" in seen
    assert "Traceback" not in seen


def test_a_result_that_cannot_be_printed(started, memory):
    """`> /dev/full`: the snapshot is taken, the exit code says that somebody lost its name."""
    with Path("/dev/full").open("wb") as full:
        result = started("snapshot", "--json", env={"DATABASE_URL": memory}, stdout=full, code=1)
    assert "standard output cannot be written to" in result.err
    assert len(result.err.splitlines()) == 1
    assert len(started("list", "--json").json) == 1


def test_a_reader_that_goes_away(started, memory):
    remember(memory, "uid_big", days=2000, padding=2000)
    stored = take(memory, started.folder / "coldstore-data")
    process = started.start("cat", stored.info.id)
    assert process.stdout is not None
    assert process.stdout.read(10) == b'{"format":'
    process.stdout.close()
    assert process.wait() == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_knows_no_unicode(started, stored, target, encoding):
    env = {"PYTHONIOENCODING": encoding, "DATABASE_URL": stored.url}
    assert started("restore", "--to", target, env=env).err == ""
    remember(stored.url, "uid_ü✓")
    info = started("snapshot", "--uid", "uid_ü✓", "--json", env=env).json
    assert info["uid"] == "uid_ü✓"
    assert started("list", env=env).err == ""


def test_standard_output_is_closed(started, memory):
    """As some supervisors start their programs."""
    process = subprocess.Popen(
        ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *started.command, "snapshot"],
        cwd=started.folder,
        env=started.environment({"DATABASE_URL": memory}),
        stderr=subprocess.PIPE,
    )
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert len(started("list", "--json").json) == 1
