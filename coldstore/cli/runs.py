"""The command that shows what ran."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, TypeVar

import typer

from coldstore import terminal
from coldstore.cli.common import Config, Database, Json, Uid, app, opened, print_json
from coldstore.errors import ConfigError, DatabaseError
from coldstore.postgres.runs import KINDS, STATES

Named = TypeVar("Named", bound=str)


@app.command()
def runs(
    *,
    kind: Annotated[str | None, typer.Option("--kind", help=f"{', '.join(KINDS)}.")] = None,
    state: Annotated[str | None, typer.Option("--state", help=f"{', '.join(STATES)}.")] = None,
    uid: Uid = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="No more than this many.")] = 20,
    database: Database = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """What ran, newest first: snapshots, restores, verifies, drills and deletions, and how they ended.

    The list is in the source database, or where COLD_STORE_RUNS_URL says; `coldstore init` makes it. What has given no sign of life for too
    long is closed as failed.
    """
    chosen_kind, chosen_state = _one_of(KINDS, kind, "--kind"), _one_of(STATES, state, "--state")
    with opened(config, database_url=database) as store:
        with suppress(DatabaseError):  # who may only read sees them all the same
            store.runs.reap()
        found = store.runs.list(kind=chosen_kind, state=chosen_state, uid=uid, limit=limit)
    if json:
        print_json(found)
    elif found:
        terminal.console().print(terminal.runs(found))
    else:
        print("Nothing ran.")


def _one_of(known: tuple[Named, ...], wish: str | None, option: str) -> Named | None:
    found = next((name for name in known if name == wish), None)
    if found is None and wish is not None:
        raise ConfigError(f"{option} cannot be {wish!r}", hint=f"It is one of {', '.join(known)}.")
    return found
