"""Commands that compare: two snapshots, a snapshot and the database, every version of one memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import Raw

from coldstore import terminal
from coldstore.cli.changes import LIMIT, changes, lines_of, members
from coldstore.cli.common import Config, Database, Json, RequireSignature, StoreUrl, Uid, Workspace, app, check_date, opened, print_json

if TYPE_CHECKING:  # a snapshot need not wait for it
    from coldstore.history import Version

DIFFERENT = 1

Limit = Annotated[int, typer.Option("--limit", min=0, help="Rows shown of each kind of each tier; 0: all. The counts are always of all.")]


@app.command()
def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="A snapshot's id, `latest`, a moment with an offset, or `live`.")],
    after: Annotated[str, typer.Argument(metavar="B", help="The same. `live` is the database as it is now.")],
    *,
    uid: Uid = None,
    workspace: Workspace = None,
    tier: Annotated[list[str] | None, typer.Option("--tier", help="Only this tier; may be repeated.")] = None,
    limit: Limit = LIMIT,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 1 when they differ, as diff does.")] = False,
    require_signature: RequireSignature = None,
    database: Database = None,
    store_url: StoreUrl = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Say what is different from A to B: rows added, removed and changed, and what of them.

    Rows are the same when their primary key is; in a tier without one, when all their values are. Objects and arrays inside a column are
    compared by path. Nothing is written.
    """
    with opened(config, url=store_url, database_url=database) as store, terminal.progress(quiet=json) as progress:
        found = store.diff(
            before,
            after,
            uid=uid,
            workspace=workspace,
            tiers=tier or (),
            limit=limit or None,
            require_signature=require_signature,
            progress=progress,
        )
    if json:
        print_json(found)
    else:
        sides = [(name, f"{side.id}  {side.snapshot_at}") for name, side in (("from", found.before), ("to", found.after))]
        print(terminal.facts(sides))
        for line in lines_of(found.tiers):
            print(line)
        for note in found.notes:
            print(f"note: {terminal.printable(note)}")
    if exit_code and not found.equal:
        raise typer.Exit(DIFFERENT)


@app.command()
def history(
    *,
    uid: Uid = None,
    tier: Annotated[str, typer.Option("--tier", help="The memory's tier.")],
    key: Annotated[list[str], typer.Option("--key", help="Its primary key; of several columns each as column=value.")],
    since: Annotated[str | None, typer.Option("--since", help="Only snapshots of this UTC day or later, 2026-02-26.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="Only snapshots of this UTC day or earlier.")] = None,
    require_signature: RequireSignature = None,
    store_url: StoreUrl = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Show every version of one memory that the snapshots hold, newest first. Asks no database.

    The user's own snapshots and those of everybody are read; without --uid only the latter.
    """
    for date in (since, until):
        check_date(date)
    with opened(config, url=store_url) as store:
        found = store.history(tier=tier, key=key, uid=uid, since=since, until=until, require_signature=require_signature)
    if json:
        print_json(found)
        return
    for version in found.versions:
        print("\n".join(_version(version)))
    for note in found.notes:
        print(f"note: {terminal.printable(note)}")
    print(f"{len(found.versions)} versions in {found.snapshots} snapshots")


def _version(version: Version) -> Iterator[str]:
    seen = version.first.snapshot_at if version.first == version.last else f"{version.first.snapshot_at} to {version.last.snapshot_at}"
    yield f"{version.change:<8} {seen}  {version.first.id}"
    if isinstance(version.columns, list):
        yield from (f"  {line}" for line in changes(version.columns))
    elif isinstance(version.row, Raw):
        yield f"  {members(version.row)}"
