"""An agent's own documents, through the reader that needs no coldstore."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coldstore import catalog, config
from coldstore.codec.sign import SigningKey
from coldstore.document.notes import encode_note
from coldstore.keyrings.keyfile import Key, new_text
from coldstore.storage.local import LocalStore
from coldstore.vault import SMALLEST_OBJECT, MemoryVault
from tests.recovering import recover

MEMORY = {
    "plan.md": "# Plan\nümlaut 😀\n",
    "notes/a/b.md": "",
    "state": {"n": [1, 2.50, None], "big": 10**30},
    "face.png": bytes(range(256)),
}
BIG = {**MEMORY, "big": "line\n" * 60_000}


def vault_in(folder: Path, *, object_limit: int | None = None, **given: object) -> MemoryVault:
    return MemoryVault("alice", url=str(folder), settings=config.build({}, given), object_limit=object_limit)


def read(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def files(memory: dict) -> dict[str, bytes]:
    def content(value: object) -> bytes:
        if isinstance(value, str):
            return value.encode()
        return value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()

    return {name: content(value) for name, value in memory.items()}


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("object_limit", [None, SMALLEST_OBJECT])
@pytest.mark.parametrize("sealed", [False, True])
def test_everything_comes_out_as_files(tmp_path, compression, object_limit, sealed):
    key, signer = Key.new(), SigningKey.generate()
    (tmp_path / "keys").write_text(new_text(key))
    vault = vault_in(
        tmp_path / "store",
        compression=compression,
        object_limit=object_limit,
        key=new_text(key) if sealed else None,
        signing_key=signer.text(),
    )
    saved = vault.backup(BIG, label="first")
    arguments = [tmp_path / "store", saved.id, "--trust", signer.did, "--require-signature"]
    arguments += ["--key-file", tmp_path / "keys"] if sealed else []
    done = recover(*arguments, "--out", tmp_path / "out", "--format", "files")
    assert (done.returncode, done.stderr) == (0, b"")
    assert read(tmp_path / "out") == files(BIG)
    done = recover(*arguments)
    assert done.returncode == 0
    assert done.stdout == b"".join(b"documents\t" + encode_note(n, v) + b"\n" for n, v in BIG.items())


def test_rows_are_files_of_lines_too(tmp_path):
    saved = vault_in(tmp_path / "store").backup(MEMORY)
    done = recover(tmp_path / "store", saved.id, "--out", tmp_path / "out", "--uid", "alice")
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "out") == {"documents.jsonl": b"".join(encode_note(n, v) + b"\n" for n, v in MEMORY.items())}
    assert b"documents" in recover("--list", tmp_path / "store").stdout


def test_names_that_would_leave_the_folder_do_not(tmp_path):
    hostile = ["../x", "/etc/x", "..", "a//b", "nul\0", "new\nline", "back\\slash", "c:x", "", "x" * 300, "A", "a", "a/b"]
    saved = vault_in(tmp_path / "store").backup({name: f"of {name}" for name in hostile})
    before = {p.name for p in tmp_path.iterdir()}
    done = recover(tmp_path / "store", saved.id, "--out", tmp_path / "out", "--format", "files")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in tmp_path.iterdir()} == before | {"out"}
    assert sorted(read(tmp_path / "out").values()) == sorted(f"of {name}".encode() for name in hostile)
    assert done.stderr.count(b"cannot be a file of that name here") == 12
    assert (tmp_path / "out" / "A").read_text() == "of A"


def test_a_program_can_be_run_again(tmp_path):
    vault = vault_in(tmp_path / "store")
    saved = vault.backup_rows([encode_note("run.sh", "#!/bin/sh\n", executable=True), encode_note("x", "y")])
    assert recover(tmp_path / "store", saved.id, "--out", tmp_path / "out", "--format", "files").returncode == 0
    assert [p.stat().st_mode & 0o777 for p in sorted((tmp_path / "out").iterdir())] == [0o700, 0o600]


@pytest.mark.parametrize("how", ["gone", "shorter", "flipped"])
def test_a_damaged_part_is_noticed_and_nothing_is_written(tmp_path, how):
    saved = vault_in(tmp_path / "store", object_limit=SMALLEST_OBJECT).backup(BIG)
    document = catalog.read_manifest(LocalStore(str(tmp_path / "store")), saved.id).document
    part = tmp_path / "store" / f"{document}.0003"
    data = part.read_bytes()
    part.unlink()
    if how != "gone":
        part.write_bytes(data[:-1] if how == "shorter" else data[:-1] + b"~")
    done = recover(tmp_path / "store", saved.id, "--out", tmp_path / "out", "--format", "files")
    assert done.returncode == 1
    assert {"gone": b"missing", "shorter": b"and its manifest says", "flipped": b"damaged"}[how] in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--out", "OUT", "--format", "csv"], b"no columns"),
        (["--uid", "bob"], b"those of 'alice'"),
        (["--tier", "notes"], b"no tier 'notes'"),
        (["--format", "files"], b"needs --out"),
    ],
)
def test_what_makes_no_sense_is_said(tmp_path, more, said):
    saved = vault_in(tmp_path / "store").backup(MEMORY)
    done = recover(tmp_path / "store", saved.id, *(str(tmp_path / "out") if m == "OUT" else m for m in more))
    assert done.returncode
    assert said in done.stderr
