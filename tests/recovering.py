"""Runs `docs/recover.py` as somebody would who has nothing else: an interpreter that finds neither coldstore nor any package but those
that are named.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from types import ModuleType

PROGRAM = Path(__file__).parents[1] / "docs" / "recover.py"
PACKAGES = ("zstandard", "cryptography", "xxhash")

_GUARD = """
import runpy, sys

class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"{name} is not to be had", name=name)

_, site, names, program, *rest = sys.argv
allowed = {*sys.stdlib_module_names, *names.split(",")}
if "cryptography" in allowed:
    allowed |= {"_cffi_backend", "cffi"}
sys.meta_path.insert(0, Guard())
sys.path.append(site)
sys.argv = [program, *rest]
runpy.run_path(program, run_name="__main__")
"""


def recover(
    *arguments: str | Path, packages: Iterable[str] = PACKAGES, program: Path = PROGRAM, cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-I", "-S", "-c", _GUARD, sysconfig.get_path("platlib"), ",".join(packages), str(program)]
    return subprocess.run([*command, *map(str, arguments)], check=False, capture_output=True, cwd=cwd)


@lru_cache
def module() -> ModuleType:
    """The program as a module, for what has to be tried a thousand times."""
    spec = importlib.util.spec_from_file_location("recover", PROGRAM)
    assert spec
    assert spec.loader
    found = importlib.util.module_from_spec(spec)
    sys.modules["recover"] = found
    spec.loader.exec_module(found)
    return found
