"""Commands that carry one agent's memory to another installation, in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coldstore import moving, terminal
from coldstore.app import MODES, ON_CONFLICT
from coldstore.bundle import Record
from coldstore.cli.common import Config, Json, Label, RequireSignature, StoreUrl, app, opened, print_json
from coldstore.errors import ConfigError
from coldstore.moving import Imported, ImportOptions


@app.command()
def export(
    *,
    uid: Annotated[str, typer.Option("--uid", help="Whose memory.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file, `alice.coldstore.json`. It must not be there.")],
    snapshot: Annotated[
        str | None, typer.Option("--snapshot", help="A snapshot's id, instead of the newest that can hold the rows.")
    ] = None,
    label: Label = None,
    store_url: StoreUrl = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Write one agent's memory, rows and own documents, into a file that another installation imports.

    It comes out of the store and asks no database: take a snapshot first for what is new. The file is not sealed, whatever the store is.
    """
    with opened(config, url=store_url) as store, terminal.progress(quiet=json) as progress:
        record = moving.export(store, uid, out, snapshot_id=snapshot, label=label, progress=progress)
    if json:
        print_json({"file": str(out), **_told(record)})
        return
    print(f"wrote {out}: user {uid!r}, {terminal.size(out.stat().st_size)}")
    for array in record.arrays:
        print(f"  {array.tier}: {array.rows:,}")
    for what, origin in (("rows", record.tables), ("documents", record.documents)):
        if origin:
            print(f"  {what} of {origin.snapshot_at}, out of {origin.id}")
    for tier in record.omitted:
        print(f"  note: {tier} stays behind: no column says whose a row is")


def _told(record: Record) -> dict[str, object]:
    return {
        "uid": record.uid,
        "rows": {a.tier: a.rows for a in record.arrays},
        "tables": record.tables,
        "documents": record.documents,
        "omitted": record.omitted,
        "sha256": record.sha256,
    }


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that `export` wrote.")],
    *,
    to: Annotated[str | None, typer.Option("--to", envvar="COLD_STORE_TARGET_URL", help="Database for the rows, if it holds any.")] = None,
    rename_uid: Annotated[str | None, typer.Option("--rename-uid", help="Whose memory it becomes, instead of the old uid's.")] = None,
    new_ids: Annotated[
        bool, typer.Option("--new-ids", help="With --rename-uid: new keys in the place of UUIDs that the old user's rows still have.")
    ] = False,
    mode: Annotated[str, typer.Option("--mode", help=f"{', '.join(MODES)}.")] = "fresh",
    on_conflict: Annotated[str, typer.Option("--on-conflict", help=f"With --mode merge: {', '.join(ON_CONFLICT)}.")] = "fail",
    allow_missing_columns: Annotated[
        bool, typer.Option("--allow-missing-columns", help="Leave out values whose column the target lacks.")
    ] = False,
    require_signature: RequireSignature = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would happen; change nothing.")] = False,
    store_url: StoreUrl = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Bring a file of `export` into this installation: rows into a database, documents into the store.

    The file is read whole and compared with its checksums first. Modes are those of `restore`, for documents too.
    """
    if mode not in MODES:
        raise ConfigError(f"there is no mode {mode!r}", hint=f"Modes are {', '.join(MODES)}.")
    if on_conflict not in ON_CONFLICT:
        raise ConfigError(f"--on-conflict cannot be {on_conflict!r}", hint=f"It is one of {', '.join(ON_CONFLICT)}.")
    options = ImportOptions(
        to=to,
        rename_uid=rename_uid,
        new_ids=new_ids,
        mode=mode,
        on_conflict=on_conflict,
        allow_missing_columns=allow_missing_columns,
        require_signature=require_signature,
        dry_run=dry_run,
    )
    with opened(config, url=store_url) as store, terminal.progress(quiet=json) as progress:
        done = moving.import_bundle(store, file, options=options, progress=progress)
    if json:
        print_json(done.as_dict())
    else:
        _print(done)


def _print(done: Imported) -> None:
    verb = "would import" if done.dry_run else "imported"
    print(f"{verb} {done.bundle} as user {done.uid!r}")
    for table in done.tables.tables if done.tables else ():
        print(f"  {table['tier']}: {table['rows']:,} rows → {table['table']} ({table['action']})")
    if done.documents:
        print(f"  documents: {len(done.documents):,}{f' → {done.snapshot_id}' if done.snapshot_id else ''}")
    for note in done.notes:
        print(f"  note: {terminal.printable(note)}")
