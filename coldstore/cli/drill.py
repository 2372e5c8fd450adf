"""The command that proves that a snapshot restores."""

from __future__ import annotations

from typing import Annotated

import typer

from coldstore import terminal
from coldstore.cli.common import Config, Json, SnapshotId, StoreUrl, app, opened, print_json
from coldstore.errors import ConfigError, VerifyFailed


@app.command()
def drill(
    snapshot_id: SnapshotId = None,
    *,
    latest: Annotated[bool, typer.Option("--latest", help="The newest all-user snapshot. This is the default.")] = False,
    to: Annotated[
        str | None,
        typer.Option("--to", envvar="COLD_STORE_DRILL_URL", help="Server to make the database on, instead of an embedded Postgres."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the database there.")] = False,
    store_url: StoreUrl = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Prove that a snapshot restores: into a database that is thrown away, read back, written to, asked what must be true. Exit code 9 when
    it is not proven.

    Content is compared tier by tier with the manifest; tables, indexes, constraints and sequences with the document, and tried. The outcome
    is kept in the store, and `list` shows it.
    """
    if snapshot_id is not None and latest:
        raise ConfigError("choose one of ID and --latest")
    if to is not None and not to.strip():
        raise ConfigError("--to is empty", hint="Name a server: postgresql://user@host:5432/postgres. Left out, an embedded one serves.")
    with opened(config, url=store_url) as store, terminal.progress(quiet=json) as progress:
        report = store.drill(snapshot_id, to=to, keep=keep, progress=progress)
    if json:
        print_json(report.as_dict())
    else:
        print(report.id)
        width = max(len(terminal.printable(c.name)) for c in report.checks)
        for check in report.checks:
            name = terminal.printable(check.name)
            print(f"{name:<{width}}  {'ok    ' if check.ok else 'FAILED'}  {check.seconds:7.2f} s  {terminal.printable(check.detail)}")
        print("proven" if report.proven else "NOT PROVEN")
    if not report.proven:
        raise typer.Exit(VerifyFailed.exit_code)
