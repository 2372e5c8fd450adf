"""coldstore: the cold store for the long-term memory that AI agents keep in Postgres."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coldstore.app import ColdStore
    from coldstore.autosave import AutoSave, AutoSnapshot
    from coldstore.catalog import SnapshotInfo
    from coldstore.document.merging import to_merge_export
    from coldstore.errors import ColdStoreError
    from coldstore.vault import MemoryVault, VaultSnapshot, VaultStatus

__version__ = "0.1.0"
__all__ = [
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

_HOMES = {
    "AutoSave": "coldstore.autosave",
    "AutoSnapshot": "coldstore.autosave",
    "ColdStore": "coldstore.app",
    "ColdStoreError": "coldstore.errors",
    "MemoryVault": "coldstore.vault",
    "SnapshotInfo": "coldstore.catalog",
    "VaultSnapshot": "coldstore.vault",
    "VaultStatus": "coldstore.vault",
    "to_merge_export": "coldstore.document.merging",
}


def __getattr__(name: str) -> Any:
    """Imported when first asked for: `import coldstore` alone is free."""
    if name not in _HOMES:
        raise AttributeError(f"module 'coldstore' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
