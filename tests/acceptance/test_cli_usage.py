"""The command line itself: help, versions, mistakes, arguments that are no text."""

from __future__ import annotations

import pytest

from coldstore import __version__
from tests.acceptance.program import files

COMMANDS = [
    "doctor",
    "drill",
    "status",
    "init",
    "snapshot",
    "list",
    "show",
    "cat",
    "restore",
    "verify",
    "keygen",
    "demo",
    "runs",
    "diff",
    "history",
]
CONFIG = 2


def test_the_version(started):
    told = started("--version")
    assert (told.out, told.err) == (f"coldstore {__version__}\n", "")


def test_help(cold):
    whole = cold("--help")
    assert whole.err == ""
    assert cold().out == whole.out
    for command in COMMANDS:
        assert f"  {command} " in whole.out
        told = cold(command, "--help")
        assert told.out.startswith(f"Usage: coldstore {command} ")
        assert "Traceback" not in told.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_speaks_json_but_the_one_that_streams(cold, command):
    assert ("--json" in cold(command, "--help").out) == (command != "cat")


@pytest.mark.parametrize(
    "arguments", [["snapshto"], ["snapshot", "--no-such"], ["show"], ["list", "extra"], ["list", "--limit", "many"], ["show", "--config"]]
)
def test_mistakes(cold, arguments):
    told = cold.refused(*arguments, code=CONFIG, error="ConfigError")
    assert "--help" in told["hint"]
    assert files(cold.folder) == []


def test_whose_memory_can_be_said_once(cold, memory):
    for arguments in (["--all", "--uid", "u"], ["--uid", "u", "--workspace", "w"], ["--each-user", "--all"], ["--each-user", "--uid", "u"]):
        told = cold.refused("snapshot", *arguments, env={"DATABASE_URL": memory}, code=CONFIG, error="ConfigError")
        assert "--each-user" in told["message"]
    assert files(cold.folder) == []


def test_an_empty_snapshot_of_a_user_when_it_is_wanted(cold, memory):
    told = cold("snapshot", "--uid", "uid_nobody", "--allow-empty", "--json", env={"DATABASE_URL": memory})
    assert set(told.json["rows"].values()) == {0}


def test_arguments_that_are_no_text(started, memory):
    """A shell passes any bytes."""
    env = {"DATABASE_URL": memory}
    for arguments in (["--uid", b"\xff"], ["--workspace", b"a\xc3"], ["--uid", "uid_alice", "--label", b"\xff"]):
        told = started("snapshot", *arguments, env=env, code=CONFIG)
        assert "UTF-8" in told.err
        assert len(told.err.splitlines()) == 2
    assert files(started.folder) == []


def test_a_traceback_only_for_those_who_ask(cold):
    assert "Traceback" in cold("snapshot", env={"COLD_STORE_DEBUG": "1"}, code=CONFIG).err
    assert "Traceback" not in cold("snapshot", env={"COLD_STORE_DEBUG": ""}, code=CONFIG).err


def test_a_folder_that_is_gone(started):
    """A working directory that somebody removed."""
    gone = started.folder / "gone"
    gone.mkdir()
    told = started("list", before=gone.rmdir, cwd=gone, code=None)
    assert "Traceback" not in told.err
