"""Commands on the way out: what is needed for it in the database, and snapshots."""

from __future__ import annotations

from typing import Annotated

import typer

from coldstore import terminal
from coldstore.catalog import SnapshotInfo
from coldstore.cli.common import Config, Database, Json, Label, StoreUrl, Uid, Workspace, app, opened, print_json
from coldstore.errors import ConfigError, NotFound


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
    change_capture: Annotated[
        bool | None,
        typer.Option("--change-capture/--no-change-capture", help="Make, or remove, what records changes for incremental snapshots."),
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
        applied = store.init(reference_schema=reference_schema, schedule_trigger=schedule_trigger, change_capture=change_capture)
    if json:
        print_json({"migrations": applied, "referenceSchema": reference_schema})
    else:
        print(f"{len(applied)} migrations applied." if applied else "The coldstore tables are up to date.")
        if reference_schema:
            print("The reference tables are there.")
        if change_capture is not None:
            print("Changes are recorded from now on." if change_capture else "Changes are not recorded.")


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
    incremental: Annotated[bool, typer.Option("--incremental", help="Only what changed since the newest snapshot.")] = False,
    auto_full: Annotated[bool, typer.Option("--auto-full", help="A full one, where an incremental one has nothing to build on.")] = False,
    even_if_empty: Annotated[bool, typer.Option("--even-if-empty", help="An incremental one also when nothing changed.")] = False,
    prove: Annotated[bool, typer.Option("--prove", help="Read everything, and claim what an incremental one makes of it.")] = False,
    compression: Annotated[str | None, typer.Option("--compression", help="none, gzip or zstd.")] = None,
    store_url: StoreUrl = None,
    database: Database = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Write memory to the store: everybody's, one user's, one workspace's, or each user's.

    With --incremental only what changed since the newest snapshot of the same scope, which `coldstore init --change-capture` has the
    database record; when nothing did, nothing is written.
    """
    if sum([everybody, uid is not None, workspace is not None, each_user]) > 1:
        raise ConfigError("choose one of --all, --uid, --workspace and --each-user")
    if incremental and each_user:
        raise ConfigError("an incremental snapshot is of everybody, of one user or of one workspace", hint="Leave --each-user out.")
    if (auto_full or even_if_empty or prove) and not incremental:
        raise ConfigError("--auto-full, --even-if-empty and --prove are for incremental snapshots", hint="Add --incremental.")
    found: list[SnapshotInfo] = []
    info: SnapshotInfo | None = None
    with (
        opened(config, url=store_url, database_url=database, compression=compression) as store,
        terminal.progress(quiet=json) as progress,
    ):
        if each_user:
            found = [*store.snapshot_each_user(label=label, accept=accept, progress=progress)]
            if not found and not allow_empty:
                raise NotFound(
                    "there is no user in any tier", hint="Check the tiers' `uid` columns. --allow-empty takes that for an answer."
                )
        elif incremental:
            info = store.snapshot_incremental(
                uid=uid,
                workspace=workspace,
                label=label,
                auto_full=auto_full,
                even_if_empty=even_if_empty,
                prove=prove,
                allow_empty=allow_empty,
                accept=accept,
                progress=progress,
            )
            parent = store.latest(uid=uid, workspace=workspace).id if info is None else None
        else:
            info = store.snapshot(uid=uid, workspace=workspace, label=label, allow_empty=allow_empty, accept=accept, progress=progress)
        where = store.store.url
    if json:
        print_json(found if each_user else info or {"id": None, "unchanged": True, "parent": parent})
    elif each_user:
        total = sum(i.stored_bytes for i in found)
        print(f"{len(found)} users, {sum(sum(i.rows.values()) for i in found):,} rows, {terminal.size(total)} in {where}")
    elif info is None:
        print(f"Nothing changed since {parent}; nothing was written.")
    else:
        print_snapshot(info, where)


def print_snapshot(info: SnapshotInfo, where: str) -> None:
    """What a person is told of one snapshot."""
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
