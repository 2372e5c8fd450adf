"""What is installed is the wheel, not the checkout: a file that is missing from it shows only here."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.acceptance.program import Program, ask, remember

ROOT = Path(__file__).parents[2]
_LIMIT = 600  # seconds: the index may be slow


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, timeout=_LIMIT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT, cwd=folder)
    (made,) = folder.glob("*.whl")
    return made


def test_what_is_inside(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "coldstore").rglob("*.py")}
    statements = {f"coldstore/{p.relative_to(ROOT)}" for p in (ROOT / "sql").rglob("*.sql")}
    assert len(statements) >= 3
    inside = {n for n in names if not n.partition("/")[0].endswith(".dist-info")}
    assert inside == modules | statements | {"coldstore/py.typed"}
    assert any(n.endswith("licenses/LICENSE") for n in names)


def test_a_snapshot_there_and_back_with_nothing_but_the_wheel(wheel, tmp_path, empty_database, make_database):
    run(sys.executable, "-m", "venv", "--without-pip", "venv", cwd=tmp_path)
    scripts = tmp_path / "venv" / "bin"
    run(
        *(sys.executable, "-m", "pip", "--python", scripts / "python"),
        *("install", "--quiet", "--disable-pip-version-check", "--no-compile"),
        *("-c", ROOT / "constraints.txt", wheel),
        cwd=tmp_path,
    )
    where = run(scripts / "python", "-c", "import coldstore; print(coldstore.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(tmp_path / "venv")
    folder = tmp_path / "work"
    folder.mkdir()
    cold = Program(folder, env={"DATABASE_URL": empty_database}, command=(str(scripts / "coldstore"),))
    assert cold("--version").out.startswith("coldstore ")
    cold("init", "--reference-schema")
    remember(empty_database, "uid_alice")
    info = cold("snapshot", "--all", "--json").json
    assert info["rows"]["daily_memories"] == 3
    assert cold("verify", "--all", "--deep", "--json").json["ok"]
    target = make_database(empty=True)
    assert cold("restore", "--to", target, "--json").json["verified"] == "content"
    assert ask(target, "SELECT DISTINCT uid FROM daily_memories") == [("uid_alice",)]
    told = cold.refused("demo", code=2, error="ConfigError")
    assert "coldstore[embedded]" in told["hint"]
