"""coldstore: the cold store for the long-term memory that AI agents keep in Postgres."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coldstore.app import ColdStore
    from coldstore.catalog import SnapshotInfo
    from coldstore.errors import ColdStoreError

__version__ = "0.1.0"
__all__ = ["ColdStore", "ColdStoreError", "SnapshotInfo", "__version__"]

_HOMES = {"ColdStore": "coldstore.app", "ColdStoreError": "coldstore.errors", "SnapshotInfo": "coldstore.catalog"}


def __getattr__(name: str) -> Any:
    """Imported when first asked for: `import coldstore` alone is free."""
    if name not in _HOMES:
        raise AttributeError(f"module 'coldstore' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
