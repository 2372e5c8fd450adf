"""Commands that look and change nothing: whether all that is configured works, and what there is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coldstore import terminal
from coldstore.cli.common import Config, Database, Json, StoreUrl, app, opened, print_json
from coldstore.errors import ConfigError, DoctorFailed

if TYPE_CHECKING:
    from coldstore.doctor import Findings
    from coldstore.status import Status

_SIGNS = {"ok": "ok", "warning": "warning", "failed": "FAILED", "skipped": "skipped"}


@app.command()
def doctor(
    *,
    store_only: Annotated[bool, typer.Option("--store-only", help="Ask no database.")] = False,
    database_only: Annotated[bool, typer.Option("--database-only", help="Leave the store alone.")] = False,
    database: Database = None,
    store_url: StoreUrl = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Find out whether settings, keys, database and store keep what coldstore relies on. Exit code 14 when something does not.

    The database is only read. Into the store some objects are written below doctor/, read, raced for, and removed again.
    """
    if store_only and database_only:
        raise ConfigError("choose one of --store-only and --database-only")
    with opened(config, url=store_url, database_url=database) as store, terminal.progress(quiet=json) as progress:
        found = store.doctor(database=not store_only, store=not database_only, progress=progress)
    if json:
        print_json(found.as_dict())
    else:
        _print(found)
    if found.state == "failed":
        raise typer.Exit(DoctorFailed.exit_code)


def _print(found: Findings) -> None:
    width = max(len(d.name) for d in found.diagnoses)
    for diagnosis in found.diagnoses:
        print(f"{diagnosis.name:<{width}}  {_SIGNS[diagnosis.state]:<7}  {terminal.printable(diagnosis.detail)}")
        if diagnosis.hint and diagnosis.state != "ok":
            print(f"{'':<{width}}           → {terminal.printable(diagnosis.hint)}")
    counts = {state: sum(d.state == state for d in found.diagnoses) for state in ("failed", "warning", "skipped")}
    print(f"{len(found.diagnoses)} checked, {counts['failed']} failed, {counts['warning']} with a warning, {counts['skipped']} skipped")


@app.command()
def status(
    *,
    store_url: StoreUrl = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Say what the store holds, how it grows and what it costs, from its manifests. No database is asked."""
    with opened(config, url=store_url) as store, terminal.progress(quiet=json) as progress:
        found = store.status(progress=progress)
    if json:
        print_json(found.as_dict())
    else:
        print("\n\n".join(_sections(found)))


def _sections(found: Status) -> Iterator[str]:
    tally = found.tally
    yield terminal.facts(_overview(found))
    if tally.total.count:
        kinds = [(_KINDS[kind], k["scopes"], k["snapshots"], terminal.size(k["storedBytes"])) for kind, k in tally.kinds().items()]
        yield _table(("OF", "SCOPES", "SNAPSHOTS", "STORED"), kinds)
        yield _table(("MOST STORED", "SNAPSHOTS", "STORED"), [(str(s), a.count, terminal.size(a.bytes)) for s, a in tally.top()])
        yield _table(("MONTH", "SNAPSHOTS", "STORED"), [(m, a.count, terminal.size(a.bytes)) for m, a in sorted(tally.months.items())])
    if tally.newest:
        tiers = [(name, f"{t.rows:,}", terminal.size(t.bytes), terminal.size(t.stored_bytes)) for name, t in tally.newest.tiers.items()]
        yield _table(("TIER OF THE NEWEST", "ROWS", "PLAIN", "STORED"), tiers)


_KINDS = {"all": "everybody", "uid": "users", "workspace": "workspaces"}


def _overview(found: Status) -> list[tuple[str, str]]:
    tally, newest, cost = found.tally, found.tally.newest, found.cost
    kinds = [(tally.incremental, "incremental")] if tally.incremental else []
    shares = [*kinds, (tally.sealed, "sealed"), (tally.signed, "signed"), (tally.retained, "under retention")]
    doubts = [(tally.suspect, "suspect"), (tally.damaged, "damaged"), (tally.future, "dated after now")]
    age = f"{newest.id}, {_age(tally.now - newest.timestamp)} ago" if newest else "there is none"
    last, before = tally.last_days, tally.days_before
    lines = [
        ("store", found.url),
        ("objects", f"{found.total.count:,}, {terminal.size(found.total.bytes)}"),
        ("snapshots", f"{tally.total.count:,}; {', '.join(f'{count:,} {what}' for count, what in shares)}"),
        ("to look at", ", ".join(f"{count:,} {what}" for count, what in doubts if count) or "none"),
        ("newest of everybody", age),
        ("last proven", "never" if found.last_proven is None else f"{_age(tally.now - found.last_proven)} ago"),
        ("last 30 days", f"{terminal.size(last.bytes)} in {last.count:,} snapshots; {_growth(last.bytes, before.bytes)}"),
    ]
    if tally.night:
        run = tally.night_requests
        lines.append(
            (
                "a night like",
                f"{tally.night}: {tally.night_snapshots:,} snapshots, {run.puts:,} requests that write, {run.gets:,} that read",
            )
        )
    if cost:
        lines.append(
            (
                "estimate",
                f"{_dollars(cost.total)} a month: {_dollars(cost.storage)} for what is stored, {_dollars(cost.requests)} for requests",
            )
        )
    return lines


def _dollars(amount: float) -> str:
    return "less than $0.01" if 0 < amount < 0.01 else f"${amount:,.2f}"


def _growth(last: int, before: int) -> str:
    return f"{terminal.size(before)} in the 30 before" + (f" ({(last - before) / before:+.0%})" if before else "")


def _age(milliseconds: int) -> str:
    hours = milliseconds / 3_600_000
    return f"{hours * 60:.0f} minutes" if hours < 2 else f"{hours:.0f} hours" if hours < 48 else f"{hours / 24:.0f} days"


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """The first column to the left, numbers to the right."""
    lines = [[terminal.printable(str(cell)) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) if number else cell.ljust(width) for number, (cell, width) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )
