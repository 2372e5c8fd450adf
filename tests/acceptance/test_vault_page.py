"""docs/how-to/vault.md and the README: their Python runs as it stands, from top to bottom."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def python_of(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["docs/how-to/vault.md", "README.md"])
def test_the_page_runs_without_any_configuration(page, tmp_path):
    code = "\n".join(block for block in python_of(page) if "ColdStore" not in block)
    check = "\nassert memory.items() >= {'state': {'step': 3}}.items(), memory\nprint(len(memory), vault.restore() == memory)\n"
    assert code.count("MemoryVault") >= 1
    environ = {"HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code + check], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("True")


def test_the_table_of_places_is_right(monkeypatch):
    from coldstore.vault import default_folder

    monkeypatch.setenv("HOME", "/home/agent")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert f"`{str(default_folder()).replace('/home/agent', '~')}`" in (ROOT / "docs" / "how-to" / "vault.md").read_text()
