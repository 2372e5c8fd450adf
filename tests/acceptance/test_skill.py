"""The page for agents, typed from its first command to its last."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "skill.md"
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def script() -> str:
    return "".join(BLOCK.findall(PAGE.read_text(encoding="utf-8")))


def test_every_command_of_the_page_works(cold, script, tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "coldstore").write_text(f'#!/bin/sh\nexec {sys.executable} -m coldstore "$@"\n')
    (programs / "coldstore").chmod(0o755)
    environment = cold.environment({"COLD_STORE_API_KEY": None})
    environment["PATH"] = f"{programs}:{environment['PATH']}"
    log = tmp_path / "log"
    # What the page leaves running is stopped as it says, once it is under way: it saves what is unsaved, and that is a success.
    stop = f'echo "one more" >> memory/MEMORY.md; until grep -q "watching memory" {log}; do sleep 0.1; done; kill $!; wait $!'
    with log.open("w") as said:
        # A shell says each command before it runs it, and stops at the first that fails.
        done = subprocess.run(
            ["sh", "-exc", script + stop], check=False, cwd=cold.folder, env=environment, stdout=subprocess.PIPE, stderr=said, text=True
        )
    told = log.read_text()
    assert done.returncode == 0, told
    assert (cold.folder / "memory" / "MEMORY.md").read_text() == "The user prefers short answers.\none more\n"
    assert json.loads(cold("vault", "list", "--agent", "agent-42", "--json").stdout)[0]["label"] in {"shutdown", None}
    assert json.loads(cold("vault", "restore", "out", "--agent", "agent-42", "--json").stdout)["added"] == ["MEMORY.md"]
    assert (cold.folder / "out" / "MEMORY.md").read_text() == (cold.folder / "memory" / "MEMORY.md").read_text()
    typed = [line for line in script.splitlines() if line.startswith("coldstore ")]
    assert len(typed) > 12
    run = [line for line in told.splitlines() if "+ coldstore " in line]
    assert len(run) == len(typed)
    assert "~ " not in done.stdout  # nothing of it differed
    assert "+ MEMORY.md" in done.stdout  # the dry run said what is missing


def test_it_is_less_than_a_page():
    assert len(PAGE.read_text(encoding="utf-8").split()) < 700
