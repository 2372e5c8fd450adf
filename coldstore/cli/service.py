"""Commands that stay: the HTTP API, the scheduler, and what it will do."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import closing
from datetime import datetime
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import typer

from coldstore import terminal
from coldstore.app import import_all
from coldstore.cli.common import Config, Database, Json, StoreUrl, app, opened, print_json, say_json, say_line
from coldstore.config import Settings, load
from coldstore.errors import ConfigError
from coldstore.postgres.schedules import ScheduleRow

scheduler_app = typer.Typer(name="scheduler", rich_markup_mode=None)
app.add_typer(scheduler_app)

_TERMINATED = 128 + signal.SIGTERM


@scheduler_app.callback(invoke_without_command=True)
def run_scheduler(
    ctx: typer.Context, *, store_url: StoreUrl = None, database: Database = None, config: Config = None, json: Json = False
) -> None:
    """Run what the rows of scheduled_agents ask for, when their cron expressions say so, until SIGTERM or Ctrl-C.

    Any number may run side by side: each slot is run once. What happens is told on standard error, a line each; with --json on standard
    output, one JSON object a line. When stopped it waits for what is under way, up to `stop_seconds`, and then gives it up: exit code 143
    instead of 0. Stopped twice it does not wait.
    """
    if ctx.invoked_subcommand:
        return
    from coldstore.perform import scheduler

    import_all()
    with (
        opened(config, url=store_url, database_url=database) as store,
        scheduler(store.settings, say=say_json if json else say_line) as service,
    ):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, lambda *_: service.stop())
        whole = service.run()
        if not service.idle:  # a run that does not listen; Python would wait for its threads
            os._exit(_TERMINATED)
    if not whole:
        raise typer.Exit(_TERMINATED)


@app.command()
def serve(
    *,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen at. Default: `host` of [server], 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Port to listen at. Default: `port` of [server], 8000.")
    ] = None,
    with_scheduler: Annotated[bool, typer.Option("--scheduler", help="Run the scheduler in the same process.")] = False,
    store_url: StoreUrl = None,
    database: Database = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Serve the admin HTTP API, until SIGTERM or Ctrl-C. It needs a key: COLD_STORE_API_KEY.

    What happens is told on standard error, a line each; with --json on standard output, one JSON object a line. When stopped it takes no
    more requests, waits for what is under way, up to `stop_seconds`, and then gives it up: exit code 143 instead of 0. Stopped twice it
    does not wait.
    """
    settings = load(config=config, flags={"url": store_url, "database_url": database, "server_host": host, "server_port": port})
    try:
        from coldstore.http.serve import serve as run
    except ModuleNotFoundError as exc:
        raise ConfigError(
            f"the HTTP API needs {exc.name}, which is not installed",
            hint="Install coldstore with its extra: pip install 'coldstore[server]'.",
        ) from exc
    import_all()
    if not run(settings, say=say_json if json else say_line, with_scheduler=with_scheduler):
        sys.stdout.flush()
        os._exit(_TERMINATED)  # a run that does not listen; Python would wait for its threads


@scheduler_app.command("list")
def list_schedules(
    *,
    limit: Annotated[int, typer.Option("--next", min=1, max=1000, help="So many slots of each.")] = 3,
    database: Database = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """The rows that the scheduler runs: when next, how it went last, and what is wrong with one."""
    from coldstore.perform import schedules

    with opened(config, database_url=database) as store, closing(schedules(store.settings)) as rows:
        found = rows.read()
        told = [_told(row, store.settings, found.now, limit) for row in found.rows]
        surface = store.settings.scheduler_surface_id
    if json:
        print_json(told)
    elif not told:
        print(f"No row of scheduled_agents has the surface_id {surface!r} and is enabled.")
    for one in told if not json else ():
        print(terminal.facts([*_facts(one)]))


def _told(row: ScheduleRow, settings: Settings, now: datetime, count: int) -> dict[str, Any]:
    from coldstore.perform import upcoming

    error, zone, slots = row.last_run_error, None, list[datetime]()
    try:
        zone, slots = upcoming(row, settings, now=now, count=count)
    except ConfigError as exc:
        error = f"{exc.code}: {exc}"
    return {
        "id": row.id,
        "workspace": row.workspace_id,
        "cron": row.cron_expression,
        "zone": zone,
        "instruction": row.input_message,
        "next": [{"utc": slot, "local": slot.astimezone(ZoneInfo(zone or "UTC"))} for slot in slots],
        "lastSlot": row.begun,
        "lastState": row.state,
        "lastRunAt": row.last_run_at,
        "error": error,
    }


def _facts(told: dict[str, Any]) -> list[tuple[str, object]]:
    pairs = [
        ("schedule", told["id"]),
        ("workspace", told["workspace"]),
        ("when", f"{told['cron']} {told['zone'] or ''}".strip()),
        ("asks for", terminal.printable(told["instruction"] or "")),
        *(("next", f"{slot['utc']:%Y-%m-%d %H:%M} UTC, {slot['local']:%Y-%m-%d %H:%M %Z}") for slot in told["next"]),
        ("last", f"{told['lastSlot']:%Y-%m-%d %H:%M} UTC, {told['lastState']}" if told["lastSlot"] else None),
        ("error", terminal.printable(told["error"]) if told["error"] else None),
    ]
    return [(name, value) for name, value in pairs if value is not None]
