"""A folder of files in a vault, and back: each file is a document under its path.

A file that is UTF-8 is kept as text, any other as bytes, byte for byte either way; so is whether it may be executed. A document that is
neither text nor bytes, which a program saved, becomes a file with its JSON, whose name ends in `.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from coldstore.document import model
from coldstore.document.notes import Value, decode_note, encode_note
from coldstore.errors import FolderError, NotFound, RestoreRefused
from coldstore.files.place import Placing, Plan, place, plan
from coldstore.files.tree import File, Tree, read_tree
from coldstore.files.watch import Watch
from coldstore.vault import MemoryVault, VaultSnapshot

if TYPE_CHECKING:  # an agent that saves a folder from Python needs no database's driver
    from coldstore.app import ColdStore


def backup(vault: MemoryVault, folder: Path, *, label: str | None = None, accept: bool = False) -> tuple[VaultSnapshot, Tree]:
    """A snapshot of all files of a folder, and what was read."""
    tree = read_tree(folder)
    return save(vault, tree, label=label, accept=accept), tree


def save(vault: MemoryVault, tree: Tree, *, label: str | None = None, accept: bool = False) -> VaultSnapshot:
    return vault.backup_rows(rows_of(tree), label=label, accept=accept)


def plan_restore(
    vault: MemoryVault, folder: Path, *, how: Placing, label: str | None = None, snapshot_id: str | None = None
) -> tuple[Plan, VaultSnapshot]:
    """What it takes to bring a snapshot back into a folder, by default the newest one; `files.place.place` does it."""
    manifest = vault.find(label=label, snapshot_id=snapshot_id)
    return plan(folder, files_of(vault.restore_rows(snapshot_id=manifest.id)), how), VaultSnapshot.of(manifest)


def restore(
    store: ColdStore, snapshot_id: str, to: str, *, how: Placing, dry_run: bool = False, require_signature: bool | None = None
) -> Plan:
    """The same of any agent's snapshot, into the folder `to`; what was done, or with `dry_run` would be."""
    if "://" in to or "=" in to:
        raise RestoreRefused(
            f"{snapshot_id} holds an agent's own files, which no database has a table for",
            hint=f"Name a folder: `coldstore restore {snapshot_id} --to FOLDER`.",
        )
    document = store.stored_document(snapshot_id, require_signature=require_signature)
    rows = (row for part in document.parts([model.DOCUMENTS]) for row in part.rows())
    found = plan(Path(to), files_of(rows), how)
    if not dry_run:
        place(found)
    return found


def watch(
    vault: MemoryVault,
    folder: Path,
    *,
    say: Callable[[str], None],
    saved: Callable[[VaultSnapshot], None],
    poll: float = 1.0,
    quiet: float = 2.0,
    at_most: float = 60.0,
) -> Watch:
    """What saves the folder whenever it changes. `saved` is told of each snapshot."""

    def known() -> dict[str, File] | None:
        try:
            return files_of(vault.restore_rows())
        except NotFound:
            return None

    return Watch(
        folder,
        lambda tree, label: saved(save(vault, tree, label=label)),
        known,
        say,
        poll=poll,
        quiet=quiet,
        at_most=at_most,
    )


def rows_of(tree: Tree) -> list[bytes]:
    return [encode_note(name, _value(file.content), executable=file.executable) for name, file in tree.files.items()]


def _value(content: bytes) -> Value:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content


def files_of(rows: Iterable[bytes]) -> dict[str, File]:
    """The inverse. Raises `FolderError` for two documents that would be one file."""
    found: dict[str, File] = {}
    for row in rows:
        name, value, executable = decode_note(row)
        if not isinstance(value, str | bytes):
            name = name if name.endswith(".json") else f"{name}.json"
            value = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
        if name in found:
            raise FolderError(f"two documents would be the file {name!r}", hint="Nothing was written. Read them from Python.")
        found[name] = File(value.encode() if isinstance(value, str) else value, executable)
    return found
