"""What a person sees: tables, sizes, a progress bar. Used by the command line alone."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from coldstore.catalog import SnapshotInfo
from coldstore.errors import ColdStoreError
from coldstore.postgres.runs import RunInfo
from coldstore.progress import Progress as Listener
from coldstore.progress import silent

if TYPE_CHECKING:  # Rich takes longer to import than a small snapshot takes: only where something is drawn
    from rich.console import Console
    from rich.progress import Progress, TaskID
    from rich.table import Table

    from coldstore.verify import Verdict

_UNIT = 1000


_WIDE = 1000


def console(*, error: bool = False) -> Console:
    """A console that folds for a screen and never for a pipe: a program that reads the output wants whole lines."""
    from rich.console import Console

    screen = (sys.stderr if error else sys.stdout).isatty()
    return Console(stderr=error, highlight=False, width=None if screen else _WIDE)


def size(count: float) -> str:
    """`258.9 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < _UNIT:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= _UNIT
    return f"{count:.1f} TB"


def whose(info: SnapshotInfo | RunInfo) -> str:
    """A scope as people write it."""
    return info.uid if info.uid is not None else f"workspace {info.workspace}" if info.workspace is not None else "everybody"


def snapshots(found: list[SnapshotInfo | ColdStoreError]) -> Table:
    """The table of `list`."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, justify in (
        ("ID", "left"),
        ("OF", "left"),
        ("AT (UTC)", "left"),
        ("LABEL", "left"),
        ("ROWS", "right"),
        ("STORED", "right"),
        ("LAST PROVEN", "left"),
    ):
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name in {"ID", "AT (UTC)"})  # type: ignore[arg-type]
    for item in found:
        if isinstance(item, ColdStoreError):
            table.add_row(f"[red]damaged[/red] {item.key or ''}", str(item), "", "", "", "", "")
            continue
        at = item.snapshot_at.replace("T", " ").removesuffix("Z")
        rows = f"{sum(item.rows.values()):,}{' changed' if item.parent else ''}"
        label = _plain(item.label or "") + (" [yellow]suspect[/yellow]" if item.suspect else "")
        table.add_row(item.id, _plain(whose(item)), at, label.strip(), rows, size(item.stored_bytes), proven(item))
    return table


def proven(info: SnapshotInfo) -> str:
    """The day of the last drill; of one that failed it says so."""
    if info.last_drill is None:
        return ""
    return f"{'' if info.last_drill.proven else 'failed '}{info.last_drill.at[:10]}"


_COLOURS = {"ok": "green", "damaged": "red", "untrusted": "red", "unopened": "yellow"}


def verdicts(found: Iterable[Verdict]) -> Table:
    """The table of `verify`; what is wrong stands below the snapshot that it is wrong with."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, justify in (("STATE", "left"), ("ID", "left"), ("ROWS", "right"), ("SIZE", "right"), ("FRAMES READ", "right")):
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name != "ID")  # type: ignore[arg-type]
    for verdict in found:
        state = f"[{_COLOURS[verdict.state]}]{verdict.state}[/]"
        table.add_row(state, _plain(verdict.id), f"{verdict.rows:,}", size(verdict.bytes), f"{verdict.frames:,}" if verdict.frames else "")
        for sentence in [*verdict.problems, *filter(None, (verdict.untrusted, verdict.unopened)), *verdict.notes]:
            table.add_row("", _plain(sentence))
    return table


_STATES = {"succeeded": "green", "failed": "red", "skipped": "yellow", "running": "cyan"}


def runs(found: Iterable[RunInfo]) -> Table:
    """The table of `runs`: what came of each, its snapshot or why there is none."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("STARTED (UTC)", "KIND", "BY", "OF", "STATE", "TOOK", "SNAPSHOT, OR WHY NOT"):
        table.add_column(name, justify="right" if name == "TOOK" else "left", overflow="fold", no_wrap=name == "STARTED (UTC)")
    for run in found:
        took = "" if run.seconds is None else f"{run.seconds:,.2f} s"
        state = f"[{_STATES[run.state]}]{run.state}[/]"
        of = "each user" if run.details.get("each") else whose(run)
        started = f"{run.started_at:%Y-%m-%d %H:%M:%S}"
        table.add_row(started, run.kind, run.trigger, _plain(of), state, took, _plain(run.error or run.snapshot_id or ""))
    return table


def facts(pairs: list[tuple[str, Any]]) -> str:
    """Names and values below one another, never folded: paths and hashes are there to be copied."""
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"{name:<{width}}  {printable(str(value))}".rstrip() for name, value in pairs)


def printable(text: str) -> str:
    """`text` without control characters, which would move the cursor or worse: a uid may hold any."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _plain(text: str) -> str:
    """Printable, and not taken for Rich's markup."""
    from rich.markup import escape

    return escape(printable(text))


class _Bar:
    """A Rich progress bar: what is being done, bytes, rate, rows, time."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task: TaskID | None = None
        self._rows = 0

    def start(self, what: str, *, total_bytes: int | None = None) -> None:
        if self._task is not None:
            done = self._bar.tasks[-1].completed
            self._bar.update(self._task, total=max(done, 1), completed=max(done, 1))
            self._bar.stop_task(self._task)
        self._rows = 0
        self._task = self._bar.add_task(_plain(what), total=total_bytes, rows="")

    def advance(self, *, rows: int = 0, size: int = 0) -> None:
        if self._task is None:
            self._task = self._bar.add_task("", total=None, rows="")
        self._rows += rows
        self._bar.update(self._task, advance=size, rows=f"{self._rows:,} rows")

    def note(self, sentence: str) -> None:
        self._bar.console.print(f"note: {_plain(sentence)}")


class _Notes:
    """Without a terminal only what a person must know, on standard error."""

    start = silent.start
    advance = silent.advance

    def note(self, sentence: str) -> None:
        print(f"note: {sentence}", file=sys.stderr)


@contextmanager
def progress(*, quiet: bool) -> Iterator[Listener]:
    """A bar on a terminal, nothing in a pipe or when `quiet`."""
    if quiet or not (sys.stderr.isatty() and sys.stdout.isatty()):
        yield _Notes()
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TransferSpeedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[rows]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console(error=True), transient=True) as bar:
        yield _Bar(bar)
