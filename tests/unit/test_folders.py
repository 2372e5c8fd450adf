"""Folders in a vault: whatever the files, they come back byte for byte."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstore import folders, to_merge_export
from coldstore.config import build
from coldstore.errors import FolderError, InvalidMemory, QuotaExceeded, SuspectSnapshot
from coldstore.files.place import Placing, place
from coldstore.files.tree import File, Tree, read_tree
from coldstore.vault import MemoryVault

FRESH = Placing("fresh")


@pytest.fixture
def vault(tmp_path):
    with MemoryVault("agent-42", settings=build({}, {"path": str(tmp_path / "store")})) as found:
        yield found


def write(folder: Path, files: dict[str, File]) -> None:
    from coldstore.files.place import plan

    place(plan(folder, files, Placing("replace")))


@settings(deadline=None)
@given(st.dictionaries(st.text(min_size=1), st.builds(File, st.binary(), st.booleans())))
def test_every_file_is_a_document_and_comes_back(files):
    assert folders.files_of(folders.rows_of(Tree(files, {}, {}))) == files


def test_ten_thousand_files(vault, tmp_path):
    folder, files = tmp_path / "memory", {f"{n % 100:02}/note {n}.md": File(f"# {n} ✓\n".encode() * (n % 7)) for n in range(10_000)}
    write(folder, files)
    info, tree = folders.backup(vault, folder)
    assert info.documents == len(tree.files) == 10_000
    chosen, _ = folders.plan_restore(vault, tmp_path / "again", how=FRESH)
    place(chosen)
    assert read_tree(tmp_path / "again").files == files
    chosen, _ = folders.plan_restore(vault, tmp_path / "again", how=Placing())
    assert not chosen.write


def test_what_a_program_saved_becomes_files(vault, tmp_path):
    vault.backup({"plan.md": "text", "raw": b"\xff", "state": {"n": [1.5, None, "é"]}, "also.json": [1]})
    chosen, _ = folders.plan_restore(vault, tmp_path / "out", how=FRESH)
    place(chosen)
    found = {n: f.content for n, f in read_tree(tmp_path / "out").files.items()}
    assert (found["plan.md"], found["raw"], sorted(found)) == (b"text", b"\xff", ["also.json", "plan.md", "raw", "state.json"])
    assert json.loads(found["state.json"]) == {"n": [1.5, None, "é"]}
    vault.backup({"state": 1, "state.json": "2"})
    with pytest.raises(FolderError, match=r"two documents would be the file 'state\.json'"):
        folders.plan_restore(vault, tmp_path / "x", how=FRESH)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "", "a\0"])
def test_a_programs_names_never_leave_the_folder(vault, tmp_path, name):
    vault.backup({name: "x", "fine": "y"})
    with pytest.raises(FolderError, match="cannot be the name of a file"):
        folders.plan_restore(vault, tmp_path / "deep" / "out", how=FRESH)
    assert not (tmp_path / "deep").exists()
    assert vault.restore()[name] == "x"


def test_files_are_documents_to_a_program(vault, tmp_path):
    write(tmp_path / "m", {"a.md": File(b"text"), "run": File(b"#!", executable=True), "raw": File(b"\xff")})
    folders.backup(vault, tmp_path / "m")
    assert vault.restore() == {"a.md": "text", "run": "#!", "raw": b"\xff"}


def test_an_emptied_folder_is_suspect(vault, tmp_path):
    write(tmp_path / "m", {"a": File(b"x")})
    folders.backup(vault, tmp_path / "m")
    (tmp_path / "m" / "a").unlink()
    with pytest.raises(SuspectSnapshot):
        folders.backup(vault, tmp_path / "m")
    assert vault.restore() == {"a": "x"}
    folders.backup(vault, tmp_path / "m", accept=True)
    assert vault.restore() == {}


def test_a_quota_is_kept(tmp_path):
    write(tmp_path / "m", {"a": File(b"x" * 100_000)})
    with MemoryVault("a", settings=build({}, {"path": str(tmp_path / "store")}), quota_bytes=50_000) as vault:
        with pytest.raises(QuotaExceeded):
            folders.backup(vault, tmp_path / "m")
        assert vault.latest() is None


def test_no_database_driver_is_imported(tmp_path):
    program = f"""
import sys
from pathlib import Path
from coldstore import MemoryVault, folders
folder = Path({str(tmp_path)!r})
(folder / "m").mkdir()
(folder / "m" / "a").write_text("x")
with MemoryVault("a", url=str(folder / "store")) as vault:
    folders.backup(vault, folder / "m")
    folders.plan_restore(vault, folder / "n", how=folders.Placing())
print(sorted(n for n in sys.modules if n.partition(".")[0] in {{"psycopg", "sqlmodel", "sqlalchemy"}}))
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_the_form_for_tools_that_merge():
    found = to_merge_export({"a": "text", "b": {"n": 1}, "c": b"\0\xff"}, agent="agent-42")
    assert found == {
        "format": "coldstore-documents/1",
        "agent": "agent-42",
        "documents": {"a": "text", "b": {"n": 1}, "c": {"base64": "AP8="}},
    }
    assert json.loads(json.dumps(found)) == found
    with pytest.raises(InvalidMemory):
        to_merge_export({"a": {1, 2}}, agent="x")
    with tempfile.TemporaryDirectory() as folder, MemoryVault("a", url=folder) as vault:
        vault.backup({"a": "1"})
        assert to_merge_export(vault.restore(), agent=vault.agent)["documents"] == {"a": "1"}
