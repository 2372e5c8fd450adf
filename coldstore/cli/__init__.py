"""The command line: arguments in, `ColdStore` calls, results out. No logic of its own.

Every command has `--json`: one JSON value on standard output, errors as `{"error", "message", "hint", …}` on standard error. Exit codes
are those of `errors.py` and nothing else; 130 after Ctrl-C, 143 after SIGTERM. A traceback appears only with COLD_STORE_DEBUG=1.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import msgspec
import typer

from coldstore import __version__
from coldstore.cli.common import abandon_output, app, printing
from coldstore.errors import ColdStoreError, ConfigError, DatabaseError, DocumentError, NotFound, StoreError

__all__ = ["HOMES", "app", "load", "main"]

#: Which module of this package has which commands, in the order of `--help`.
HOMES = {
    "taking": ("init", "snapshot"),
    "memory": ("list", "show", "cat", "restore", "demo"),
    "compare": ("diff", "history"),
    "trust": ("verify", "rewrap", "compact", "delete"),
    "drill": ("drill",),
    "retention": ("prune", "lifecycle", "pointers"),
    "keys": ("keygen",),
    "service": ("scheduler", "serve"),
    "runs": ("runs",),
    "look": ("doctor", "status"),
    "moving": ("export", "import"),
    "vault": ("vault",),
}


def load(command: str | None = None) -> None:
    """Make `app` know this command, or all of them where there is none of that name. A run asks for one, and what the others import would
    take longer than a small snapshot takes."""
    homes = [home for home, commands in HOMES.items() if command in commands] or HOMES
    for home in homes:
        import_module(f"coldstore.cli.{home}")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"coldstore {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    *, version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False
) -> None:
    pass


# --- errors ------------------------------------------------------------------------------------------------------------------------

_BROKEN_PIPE = 141  # 128 + the signal's number, as a shell has it

# For errors that do not say themselves what to do.
_USUAL_HINTS: dict[type[ColdStoreError], str] = {
    ConfigError: "See `coldstore --help`.",
    DatabaseError: "The database server's log may tell more.",
    StoreError: "Check the store's address: --store, COLD_STORE_* or coldstore.toml.",
    DocumentError: "Use another snapshot; `coldstore list` shows what there is.",
    NotFound: "`coldstore list` shows what there is.",
}


_SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
_received: list[signal.Signals] = []


class Interrupted(ColdStoreError):
    """How the end by a signal is reported. The exit code is 128 + the signal's number, as a shell has it."""

    def __init__(self, number: signal.Signals) -> None:
        self.exit_code = 128 + number
        super().__init__(f"{_SIGNALS[number]}; nothing half-done was published", hint="Run it again.")


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    """Any signal to end unwinds like Ctrl-C, so that nothing half-written stays; psycopg cancels what the server is doing."""
    _received.append(signal.Signals(number))
    raise KeyboardInterrupt


def _report(error: ColdStoreError) -> None:
    usual = next((hint for kind, hint in _USUAL_HINTS.items() if isinstance(error, kind)), None)
    hint = error.hint or usual
    if "--json" in sys.argv:
        sys.stderr.write(msgspec.json.encode(error.as_dict() | {"hint": hint}).decode() + "\n")
        return
    sys.stderr.write(f"error: {error}\n")
    if hint:
        sys.stderr.write(f"hint: {hint}\n")


def _guarded(run: Callable[[], int]) -> int:
    """Run and translate whatever comes out into an exit code."""
    try:
        code = run()
        with printing():
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output went away (`| head`)
        abandon_output()
        return _BROKEN_PIPE
    except (Exception, KeyboardInterrupt) as exc:  # noqa: BLE001 — the last place where an error can become a sentence
        if os.environ.get("COLD_STORE_DEBUG"):
            traceback.print_exc()
        error = _translated(exc)
        with suppress(OSError):  # a terminal that hung up reads no message
            _report(error)
        return error.exit_code
    return code


def _translated(exc: BaseException) -> ColdStoreError:
    match exc:
        case ColdStoreError():
            return exc
        case KeyboardInterrupt():
            return Interrupted(_received[0] if _received else signal.SIGINT)
        case MemoryError():
            return ColdStoreError("out of memory", hint="Lower `readers` or `frame_mb`.")
        case UnicodeEncodeError():
            return ConfigError("an argument or variable is not valid UTF-8", hint="Postgres text and snapshots are UTF-8.")
        case _:
            return ColdStoreError(
                f"unexpected {type(exc).__name__}: {exc}", hint="This is a defect. COLD_STORE_DEBUG=1 shows where it happened."
            )


def main() -> NoReturn:
    """Run the command that the arguments name, and exit with its code."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, _stop)
    if sys.stdout is None:  # started with it closed; the first file opened now takes its place
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that has no → is no reason to fail

    def run() -> int:
        try:
            load(*sys.argv[1:2])
            code = int(app(sys.argv[1:] or ["--help"], prog_name="coldstore", standalone_mode=False) or 0)
        except SystemExit:  # Click's answer to a broken pipe
            raise BrokenPipeError from None
        except _usage_error() as exc:
            context = getattr(exc, "ctx", None)
            command = context.command_path if context else "coldstore"
            raise ConfigError(exc.format_message(), hint=f"See `{command} --help`.") from None
        if _received:  # Typer makes an exit code of the exception
            raise Interrupted(_received[0])
        return code

    code = _guarded(run)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # it is over: whoever is impatient now shall not see Python die
    sys.exit(code)


def _usage_error() -> type[Any]:
    """What the argument parser raises, wherever this version of Typer keeps it."""
    return next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
