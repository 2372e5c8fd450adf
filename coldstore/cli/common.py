"""What the commands share: the options that several take, an opened `ColdStore`, and printing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from datetime import date as day
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from coldstore import terminal
from coldstore.app import ColdStore
from coldstore.config import load
from coldstore.errors import ColdStoreError, ConfigError

app = typer.Typer(
    name="coldstore",
    help="The cold store for the long-term memory that AI agents keep in Postgres.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON value and nothing else.")]
Config = Annotated[Path | None, typer.Option("--config", help="Configuration file. Default: coldstore.toml of the current folder.")]
StoreUrl = Annotated[str | None, typer.Option("--store", help="Folder or URL of the store, instead of the configured one.")]
Database = Annotated[str | None, typer.Option("--database", help="Source database, instead of DATABASE_URL.")]
Uid = Annotated[str | None, typer.Option("--uid", help="Only this user's memory.")]
Workspace = Annotated[str | None, typer.Option("--workspace", help="Only this workspace's memory.")]
Label = Annotated[str | None, typer.Option("--label", help="Name of a snapshot, `before-upgrade`.")]
RequireSignature = Annotated[
    bool | None, typer.Option("--require-signature/--no-require-signature", help="Whether a trusted key must have signed it.")
]
SnapshotId = Annotated[str | None, typer.Argument(metavar="ID", help="A snapshot's id, as `list` shows it.")]


@contextmanager
def opened(config: Path | None, **flags: Any) -> Iterator[ColdStore]:
    refuse_empty(**flags)
    with ColdStore(load(config=config, flags=flags), trigger="cli") as store:
        yield store


def refuse_empty(**flags: Any) -> None:
    for name, value in flags.items():
        if value == "":  # `--store "$UNSET"` must not end up wherever the default is
            raise ConfigError(f"{_FLAGS[name]} is empty", hint="Name something, or leave the option out.")


_FLAGS = {"url": "--store", "database_url": "--database", "compression": "--compression"}


def print_json(value: Any) -> None:
    write(msgspec.json.encode(value) + b"\n")


def write(data: bytes) -> None:
    with printing():
        sys.stdout.buffer.write(data)


@contextmanager
def printing() -> Iterator[None]:
    """A full disk behind `> file` is no defect of ours; a reader that went away is no error at all and passes."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as exc:
        abandon_output()
        raise ColdStoreError(
            f"standard output cannot be written to: {exc.strerror}", hint="What was asked for is done; only its result is not printed."
        ) from exc


def abandon_output() -> None:
    """Python would complain once more when it flushes standard output at exit."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def check_date(date: str | None) -> None:
    if date is not None:
        try:
            day.fromisoformat(date)
        except ValueError:
            raise ConfigError(f"{date!r} is not a date", hint="Write it as 2026-02-26.") from None


def say_line(message: str, /, **_: object) -> None:
    """What happens in a command that stays, on standard error with the time; a terminal that hung up reads nothing."""
    with suppress(OSError):
        sys.stderr.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {terminal.printable(message)}\n")
        sys.stderr.flush()


def say_json(message: str, /, **facts: object) -> None:
    """The same for programs: one JSON object a line."""
    with suppress(OSError):
        sys.stdout.write(msgspec.json.encode({"at": datetime.now(UTC), "message": message, **facts}).decode() + "\n")
        sys.stdout.flush()
