"""Commands on the way back: what is in the store, a look into it, and restores; and the demo, which goes both ways."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coldstore import terminal
from coldstore.app import MODES, ON_CONFLICT
from coldstore.catalog import SnapshotInfo
from coldstore.cli.changes import LIMIT, lines_of
from coldstore.cli.common import (
    Config,
    Json,
    Label,
    RequireSignature,
    SnapshotId,
    StoreUrl,
    Uid,
    Workspace,
    app,
    check_date,
    opened,
    print_json,
    write,
)
from coldstore.cli.taking import print_snapshot
from coldstore.document import model
from coldstore.errors import ColdStoreError, ConfigError, NotFound
from coldstore.storage import layout
from coldstore.tiers import Scope

if TYPE_CHECKING:  # `list` need not wait for what reads documents
    from coldstore.chained import ChainDocument
    from coldstore.documents import StoredDocument
    from coldstore.restore import Report


@app.command("list")
def list_snapshots(
    *,
    everybody: Annotated[bool, typer.Option("--all", help="Only all-user snapshots.")] = False,
    uid: Uid = None,
    workspace: Workspace = None,
    label: Label = None,
    date: Annotated[str | None, typer.Option("--date", help="Only of this UTC day, 2026-02-26.")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="full or incremental.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="No more than this many.")] = None,
    store_url: StoreUrl = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Snapshots in the store, newest first. Asks no database."""
    check_date(date)
    if everybody and (uid is not None or workspace is not None):
        raise ConfigError("choose one of --all, --uid and --workspace")
    with opened(config, url=store_url) as store:
        found = list(
            store.list_snapshots(uid=uid, workspace=workspace, everybody=everybody, date=date, label=label, kind=kind, limit=limit)
        )
        where = store.store.url
    if json:
        print_json([i.as_dict() if isinstance(i, ColdStoreError) else i for i in found])
    elif found:
        terminal.console().print(terminal.snapshots(found))
    else:
        print(f"No snapshots in {where}.")


@app.command()
def show(
    snapshot_id: Annotated[str, typer.Argument(metavar="ID", help="A snapshot's id, as `list` shows it.")],
    *,
    store_url: StoreUrl = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Everything the manifest says about one snapshot."""
    with opened(config, url=store_url) as store:
        manifest = store.manifest(snapshot_id)
        where = store.store.url
    if json:
        print_json(manifest)
        return
    print_snapshot(SnapshotInfo.of(manifest), where)
    tables = [(f"  {t.tier}", f"{t.table}, {len(t.columns)} columns") for t in manifest.schema.tables]
    pairs = [
        ("manifest", f"{where}/{layout.manifest_key(manifest.id)}"),
        ("frames", len(manifest.frames)),
        *(_source(manifest.database) if manifest.database else []),
        ("written by", manifest.generator),
        ("sealed for", ", ".join(f"{k.ring} {k.key}" for k in manifest.sealing.keys) if manifest.sealing else "nobody: not sealed"),
        *([("built on", manifest.parent.id)] if manifest.parent else []),
        *([("comes to", ", ".join(f"{t.tier} {t.rows:,}" for t in manifest.state))] if manifest.state else []),
        *([("built from", manifest.built_from)] if manifest.built_from else []),
        ("follows", manifest.previous.id if manifest.previous else "nothing: the first of its scope"),
        ("tables", ""),
        *tables,
    ]
    print(terminal.facts(pairs))


def _source(database: model.Database) -> list[tuple[str, object]]:
    server = f"{database.name} (system {database.system_identifier or 'unknown'}), PostgreSQL {database.server_version}"
    return [("database", server), ("moment", database.snapshot)]


@app.command()
def cat(
    snapshot_id: Annotated[str, typer.Argument(metavar="ID", help="A snapshot's id, as `list` shows it.")],
    *,
    uid: Uid = None,
    tier: Annotated[str | None, typer.Option("--tier", help="Only this tier's rows.")] = None,
    store_url: StoreUrl = None,
    config: Config = None,
) -> None:
    """Print the plain document; with --uid or --tier, only those rows, one JSON object a line. Every byte is checked on the way.

    An incremental snapshot is printed as the full one that it comes to, with all it is built on.
    """
    from coldstore.compact import plain_chunks
    from coldstore.documents import StoredDocument

    with opened(config, url=store_url) as store:
        document = store.whole_document(store.manifest(snapshot_id))
        if uid is None and tier is None:
            for chunk in document.chunks() if isinstance(document, StoredDocument) else plain_chunks(document):
                write(chunk)
            return
        found = 0
        for found, row in enumerate(_rows(document, uid, tier), 1):  # noqa: B007
            write(bytes(row) + b"\n")
    if uid is not None and not found:
        raise NotFound(f"{snapshot_id} has not one row of {uid!r}{f' in {tier}' if tier else ''}", hint="Check the spelling.")


def _rows(document: StoredDocument | ChainDocument, uid: str | None, tier: str | None) -> Iterator[bytes]:
    from coldstore.documents import Owner

    if document.manifest.kind == model.DOCUMENTS and tier in {None, model.DOCUMENTS}:
        for part in document.parts([model.DOCUMENTS]) if uid in {None, document.scope.uid} else ():
            yield from part.rows()
        return
    tables = [t for t in document.manifest.schema.tables if tier is None or tier in {t.tier, t.array}]
    if not tables:
        tiers = ", ".join(document.manifest.rows())
        raise ConfigError(f"{document.name} has no tier {tier!r}", hint=f"It has {tiers}.")
    owner = None
    if uid is not None and document.scope.uid != uid:
        owner = Owner.of(Scope.user(uid), tables)
        tables = [t for t in tables if t.array in owner.columns]
    for part in document.parts([t.array for t in tables], owner):
        yield from part.rows()


@app.command()
def restore(
    snapshot_id: SnapshotId = None,
    *,
    to: Annotated[
        str, typer.Option("--to", envvar="COLD_STORE_TARGET_URL", help="Target database URL; a folder for an agent's own files.")
    ],
    latest: Annotated[bool, typer.Option("--latest", help="The newest all-user snapshot. This is the default.")] = False,
    file: Annotated[Path | None, typer.Option("--file", help="A document in a local file, also one of another program.")] = None,
    label: Label = None,
    at: Annotated[
        str | None, typer.Option("--at", help="The nearest snapshot to this moment and not after it: 2026-03-05T14:30:00+07:00.")
    ] = None,
    uid: Uid = None,
    workspace: Workspace = None,
    mode: Annotated[str, typer.Option("--mode", help=f"{', '.join(MODES)}.")] = "fresh",
    on_conflict: Annotated[str, typer.Option("--on-conflict", help=f"With --mode merge: {', '.join(ON_CONFLICT)}.")] = "fail",
    tier: Annotated[list[str] | None, typer.Option("--tier", help="Only this tier; may be repeated.")] = None,
    allow_missing_columns: Annotated[
        bool, typer.Option("--allow-missing-columns", help="Leave out values whose column the target lacks.")
    ] = False,
    require_signature: RequireSignature = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would happen, row by row with --mode replace; change nothing.")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Rows that it prints of each kind of each tier; 0: all.")] = LIMIT,
    store_url: StoreUrl = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Bring memory back: everybody's, or with --uid one user's out of everybody's.

    fresh wants the target to have no such rows; replace makes the user's (or everybody's) rows exactly the snapshot's; merge adds what is
    missing. The target changes in one transaction at the very end, after what was loaded has been compared with the snapshot.

    An incremental snapshot comes back with all it is built on. With --at and --uid it is everybody's snapshot or the user's own, whichever
    is nearer to the moment.

    An ID of an agent's own files goes into a folder instead, by the same modes.
    """
    if sum([snapshot_id is not None, latest, file is not None, at is not None]) > 1:
        raise ConfigError("choose one of ID, --latest, --at and --file")
    if label is not None and (snapshot_id is not None or file is not None or at is not None):
        raise ConfigError("--label looks for a snapshot, and ID, --at and --file name one: choose one of them")
    if mode not in MODES:
        raise ConfigError(f"there is no mode {mode!r}", hint=f"Modes are {', '.join(MODES)}.")
    if not to.strip():
        raise ConfigError("--to is empty", hint="Name the database to restore into: postgresql://user@host:5432/database.")
    if on_conflict not in ON_CONFLICT:
        raise ConfigError(f"--on-conflict cannot be {on_conflict!r}", hint=f"It is one of {', '.join(ON_CONFLICT)}.")
    with opened(config, url=store_url) as store, terminal.progress(quiet=json) as progress:
        if snapshot_id is not None and store.manifest(snapshot_id).kind == model.DOCUMENTS:
            _refuse_given(snapshot_id, tier, uid, workspace, allow_missing_columns or None)
            from coldstore import folders
            from coldstore.cli.vault import tell_placed
            from coldstore.files.place import Placing

            how = Placing(mode, on_conflict)
            plan = folders.restore(store, snapshot_id, to, how=how, dry_run=dry_run, require_signature=require_signature)
            tell_placed(plan, snapshot_id, dry_run=dry_run, json=json)
            return
        report = store.restore(
            snapshot_id,
            to=to,
            file=file,
            label=label,
            at=at,
            uid=uid,
            workspace=workspace,
            mode=mode,
            on_conflict=on_conflict,
            dry_run=dry_run,
            preview=limit or None,
            tiers=tier or (),
            allow_missing_columns=allow_missing_columns,
            require_signature=require_signature,
            progress=progress,
        )
    if json:
        print_json(report.as_dict())
    else:
        _tell_restored(report)


def _refuse_given(snapshot_id: str, *options: object) -> None:
    if any(option is not None for option in options):
        raise ConfigError(
            f"{snapshot_id} holds files, which have no tiers, columns or users",
            hint="Leave out --tier, --uid, --workspace and --allow-missing-columns.",
        )


def _tell_restored(report: Report) -> None:
    verb = "would restore" if report.dry_run else "restored"
    print(f"{verb} {report.document} ({report.snapshot_at}) of {report.scope} to {report.target}, mode {report.mode}")
    for step in report.steps:
        print(f"  from {step.id}: {step.kind}, {step.rows:,} rows, {terminal.size(step.size)}")
    for table in report.tables:
        counts = [f"{table[k]:,} {k}" for k in ("inserted", "updated", "deleted", "unchanged", "skipped", "existing") if table.get(k)]
        done = ": ".join(filter(None, (table["action"], ", ".join(counts))))
        print(f"  {table['tier']}: {table['rows']:,} rows → {table['table']} ({done})")
    if report.changes is not None:
        print("what it would change:")
        for line in lines_of(report.changes):
            print(f"  {line}")
    for note in report.notes:
        print(f"  note: {note}")
    if not report.dry_run:
        checked = "content compared with the snapshot" if report.verified == "content" else "rows counted; content could not be compared"
        print(f"{checked}; took {report.seconds:.2f} s")


@app.command()
def demo(
    *,
    folder: Annotated[Path, typer.Option("--folder", help="Where the demo's store is left.")] = Path("coldstore-demo"),
    users: Annotated[int, typer.Option("--users", min=1, max=5000, help="How many users.")] = 200,
    json: Json = False,
) -> None:
    """Show the whole way on a throw-away Postgres: fill it, snapshot, lose Alice's memory, bring it back, restore everything elsewhere."""
    from coldstore.demo import run

    result = run(folder=folder, users=users, say=(lambda _: None) if json else print)
    if json:
        print_json(result)
