"""Commands that move memory: out to the store, a look at what is there, and back."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date as day
from pathlib import Path
from typing import Annotated

import typer

from coldstore import terminal
from coldstore.app import MODES, ON_CONFLICT
from coldstore.catalog import SnapshotInfo
from coldstore.cli.common import (
    Config,
    Database,
    Json,
    Label,
    RequireSignature,
    SnapshotId,
    StoreUrl,
    Uid,
    Workspace,
    app,
    opened,
    print_json,
    write,
)
from coldstore.documents import Owner, StoredDocument
from coldstore.errors import ColdStoreError, ConfigError, NotFound
from coldstore.storage import layout
from coldstore.tiers import Scope


@app.command()
def init(
    *,
    reference_schema: Annotated[bool, typer.Option("--reference-schema", help="Also make the memory tables.")] = False,
    schedule_trigger: Annotated[
        bool | None,
        typer.Option(
            "--schedule-trigger/--no-schedule-trigger", help="Make, or remove, a trigger by which changed schedules count at once."
        ),
    ] = None,
    database: Database = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Make coldstore's own tables in the source database, or bring them up to date. Safe to repeat.

    Snapshots and restores need none of them. With --reference-schema it also makes daily_memories, graph_entities, procedural_memory
    and the other reference tables, for those who have none yet; what is there stays.
    """
    with opened(config, database_url=database) as store:
        applied = store.init(reference_schema=reference_schema, schedule_trigger=schedule_trigger)
    if json:
        print_json({"migrations": applied, "referenceSchema": reference_schema})
    else:
        print(f"{len(applied)} migrations applied." if applied else "The coldstore tables are up to date.")
        if reference_schema:
            print("The reference tables are there.")


@app.command()
def snapshot(
    *,
    everybody: Annotated[bool, typer.Option("--all", help="Everybody's memory in one document. This is the default.")] = False,
    uid: Uid = None,
    workspace: Workspace = None,
    each_user: Annotated[bool, typer.Option("--each-user", help="One document for each user, all of one moment.")] = False,
    label: Label = None,
    allow_empty: Annotated[bool, typer.Option("--allow-empty", help="Nobody's memory is no error.")] = False,
    accept: Annotated[bool, typer.Option("--accept", help="Good, even if it holds far less than the one before.")] = False,
    compression: Annotated[str | None, typer.Option("--compression", help="none, gzip or zstd.")] = None,
    store_url: StoreUrl = None,
    database: Database = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Write memory to the store: everybody's, one user's, one workspace's, or each user's."""
    if sum([everybody, uid is not None, workspace is not None, each_user]) > 1:
        raise ConfigError("choose one of --all, --uid, --workspace and --each-user")
    with (
        opened(config, url=store_url, database_url=database, compression=compression) as store,
        terminal.progress(quiet=json) as progress,
    ):
        if each_user:
            found = list(store.snapshot_each_user(label=label, accept=accept, progress=progress))
            if not found and not allow_empty:
                raise NotFound(
                    "there is no user in any tier", hint="Check the tiers' `uid` columns. --allow-empty takes that for an answer."
                )
        else:
            found = [store.snapshot(uid=uid, workspace=workspace, label=label, allow_empty=allow_empty, accept=accept, progress=progress)]
        where = store.store.url
    if json:
        print_json(found if each_user else found[0])
    elif each_user:
        total = sum(i.stored_bytes for i in found)
        print(f"{len(found)} users, {sum(sum(i.rows.values()) for i in found):,} rows, {terminal.size(total)} in {where}")
    else:
        _show(found[0], where)


def _show(info: SnapshotInfo, where: str) -> None:
    rows = ", ".join(f"{tier} {count:,}" for tier, count in info.rows.items())
    pairs = [
        ("id", info.id),
        ("of", terminal.whose(info)),
        ("at", info.snapshot_at),
        ("label", info.label),
        ("rows", rows),
        ("left out", ", ".join(info.omitted_tiers) + " (no column says whose a row is)" if info.omitted_tiers else None),
        ("size", f"{terminal.size(info.bytes)}, stored {terminal.size(info.stored_bytes)} ({info.codec})"),
        ("suspect", info.suspect),
        ("sealed", "AES-256-GCM" if info.sealed else None),
        ("signed by", info.signed_by),
        ("kept until", info.retained_until),
        ("sha256", info.sha256),
        ("document", f"{where}/{info.path}"),
        ("took", f"{info.seconds:.2f} s"),
    ]
    print(terminal.facts([(name, value) for name, value in pairs if value is not None]))


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
    _check_date(date)
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


def _check_date(date: str | None) -> None:
    if date is not None:
        try:
            day.fromisoformat(date)
        except ValueError:
            raise ConfigError(f"{date!r} is not a date", hint="Write it as 2026-02-26.") from None


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
    _show(SnapshotInfo.of(manifest), where)
    source = manifest.database
    tables = [(f"  {t.tier}", f"{t.table}, {len(t.columns)} columns") for t in manifest.schema.tables]
    pairs = [
        ("manifest", f"{where}/{layout.manifest_key(manifest.id)}"),
        ("frames", len(manifest.frames)),
        ("database", f"{source.name} (system {source.system_identifier or 'unknown'}), PostgreSQL {source.server_version}"),
        ("moment", source.snapshot),
        ("written by", manifest.generator),
        ("sealed for", ", ".join(f"{k.ring} {k.key}" for k in manifest.sealing.keys) if manifest.sealing else "nobody: not sealed"),
        ("follows", manifest.previous.id if manifest.previous else "nothing: the first of its scope"),
        ("tables", ""),
        *tables,
    ]
    print(terminal.facts(pairs))


@app.command()
def cat(
    snapshot_id: Annotated[str, typer.Argument(metavar="ID", help="A snapshot's id, as `list` shows it.")],
    *,
    uid: Uid = None,
    tier: Annotated[str | None, typer.Option("--tier", help="Only this tier's rows.")] = None,
    store_url: StoreUrl = None,
    config: Config = None,
) -> None:
    """Print the plain document; with --uid or --tier, only those rows, one JSON object a line. Every byte is checked on the way."""
    with opened(config, url=store_url) as store:
        document = store.stored_document(snapshot_id)
        if uid is None and tier is None:
            for chunk in document.chunks():
                write(chunk)
            return
        found = 0
        for found, row in enumerate(_rows(document, uid, tier), 1):  # noqa: B007
            write(bytes(row) + b"\n")
    if uid is not None and not found:
        raise NotFound(f"{snapshot_id} has not one row of {uid!r}{f' in {tier}' if tier else ''}", hint="Check the spelling.")


def _rows(document: StoredDocument, uid: str | None, tier: str | None) -> Iterator[bytes]:
    tables = [t for t in document.manifest.schema.tables if tier is None or tier in {t.tier, t.array}]
    if not tables:
        tiers = ", ".join(t.tier for t in document.manifest.schema.tables)
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
    to: Annotated[str, typer.Option("--to", envvar="COLD_STORE_TARGET_URL", help="Target database URL.")],
    latest: Annotated[bool, typer.Option("--latest", help="The newest all-user snapshot. This is the default.")] = False,
    file: Annotated[Path | None, typer.Option("--file", help="A document in a local file, also one of another program.")] = None,
    label: Label = None,
    uid: Uid = None,
    workspace: Workspace = None,
    mode: Annotated[str, typer.Option("--mode", help=f"{', '.join(MODES)}.")] = "fresh",
    on_conflict: Annotated[str, typer.Option("--on-conflict", help=f"With --mode merge: {', '.join(ON_CONFLICT)}.")] = "fail",
    tier: Annotated[list[str] | None, typer.Option("--tier", help="Only this tier; may be repeated.")] = None,
    allow_missing_columns: Annotated[
        bool, typer.Option("--allow-missing-columns", help="Leave out values whose column the target lacks.")
    ] = False,
    require_signature: RequireSignature = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would happen; change nothing.")] = False,
    store_url: StoreUrl = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Bring memory back: everybody's, or with --uid one user's out of everybody's.

    fresh wants the target to have no such rows; replace makes the user's (or everybody's) rows exactly the snapshot's; merge adds what is
    missing. The target changes in one transaction at the very end, after what was loaded has been compared with the snapshot.
    """
    if sum([snapshot_id is not None, latest, file is not None]) > 1:
        raise ConfigError("choose one of ID, --latest and --file")
    if label is not None and (snapshot_id is not None or file is not None):
        raise ConfigError("--label looks for a snapshot, and ID and --file name one: choose one of them")
    if mode not in MODES:
        raise ConfigError(f"there is no mode {mode!r}", hint=f"Modes are {', '.join(MODES)}.")
    if not to.strip():
        raise ConfigError("--to is empty", hint="Name the database to restore into: postgresql://user@host:5432/database.")
    if on_conflict not in ON_CONFLICT:
        raise ConfigError(f"--on-conflict cannot be {on_conflict!r}", hint=f"It is one of {', '.join(ON_CONFLICT)}.")
    with opened(config, url=store_url) as store, terminal.progress(quiet=json) as progress:
        report = store.restore(
            snapshot_id,
            to=to,
            file=file,
            label=label,
            uid=uid,
            workspace=workspace,
            mode=mode,
            on_conflict=on_conflict,
            dry_run=dry_run,
            tiers=tier or (),
            allow_missing_columns=allow_missing_columns,
            require_signature=require_signature,
            progress=progress,
        )
    if json:
        print_json(report.as_dict())
        return
    verb = "would restore" if report.dry_run else "restored"
    print(f"{verb} {report.document} ({report.snapshot_at}) of {report.scope} to {report.target}, mode {report.mode}")
    for table in report.tables:
        counts = [f"{table[k]:,} {k}" for k in ("inserted", "updated", "deleted", "unchanged", "skipped", "existing") if table.get(k)]
        done = ": ".join(filter(None, (table["action"], ", ".join(counts))))
        print(f"  {table['tier']}: {table['rows']:,} rows → {table['table']} ({done})")
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
