"""The command line: arguments in, `ColdStore` calls, results out. No logic of its own.

Every command has `--json`: one JSON value on standard output, errors as `{"error", "message", "hint", …}` on standard error. Exit codes
are those of `errors.py` and nothing else; 130 after Ctrl-C, 143 after SIGTERM. A traceback appears only with COLD_STORE_DEBUG=1.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import msgspec
import typer

from coldstore import __version__, terminal
from coldstore.app import MODES, ON_CONFLICT, ColdStore
from coldstore.catalog import SnapshotInfo
from coldstore.config import load
from coldstore.documents import Owner, StoredDocument
from coldstore.errors import ColdStoreError, ConfigError, DatabaseError, DocumentError, NotFound, StoreError, VerifyFailed
from coldstore.storage import layout
from coldstore.tiers import Scope

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
SnapshotId = Annotated[str | None, typer.Argument(metavar="ID", help="A snapshot's id, as `list` shows it.")]


@contextmanager
def _opened(config: Path | None, **flags: Any) -> Iterator[ColdStore]:
    for name, value in flags.items():
        if value == "":  # `--store "$UNSET"` must not end up wherever the default is
            raise ConfigError(f"{_FLAGS[name]} is empty", hint="Name something, or leave the option out.")
    with ColdStore(load(config=config, flags=flags)) as store:
        yield store


_FLAGS = {"url": "--store", "database_url": "--database", "compression": "--compression"}


def _print_json(value: Any) -> None:
    _write(msgspec.json.encode(value) + b"\n")


def _write(data: bytes) -> None:
    with _printing():
        sys.stdout.buffer.write(data)


@contextmanager
def _printing() -> Iterator[None]:
    """A full disk behind `> file` is no defect of ours; a reader that went away is no error at all and passes."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as exc:
        _abandon_output()
        raise ColdStoreError(
            f"standard output cannot be written to: {exc.strerror}", hint="What was asked for is done; only its result is not printed."
        ) from exc


@app.command()
def init(
    *,
    reference_schema: Annotated[bool, typer.Option("--reference-schema", help="Also make the memory tables.")] = False,
    database: Database = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Make coldstore's own tables in the source database, or bring them up to date. Safe to repeat.

    Snapshots and restores need none of them. With --reference-schema it also makes daily_memories, graph_entities, procedural_memory
    and the other reference tables, for those who have none yet; what is there stays.
    """
    with _opened(config, database_url=database) as store:
        applied = store.init(reference_schema=reference_schema)
    if json:
        _print_json({"migrations": applied, "referenceSchema": reference_schema})
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
        _opened(config, url=store_url, database_url=database, compression=compression) as store,
        terminal.progress(quiet=json) as progress,
    ):
        if each_user:
            found = list(store.snapshot_each_user(label=label, progress=progress))
            if not found and not allow_empty:
                raise NotFound(
                    "there is no user in any tier", hint="Check the tiers' `uid` columns. --allow-empty takes that for an answer."
                )
        else:
            found = [store.snapshot(uid=uid, workspace=workspace, label=label, allow_empty=allow_empty, progress=progress)]
        where = store.store.url
    if json:
        _print_json(found if each_user else found[0])
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
    with _opened(config, url=store_url) as store:
        found = list(
            store.list_snapshots(uid=uid, workspace=workspace, everybody=everybody, date=date, label=label, kind=kind, limit=limit)
        )
        where = store.store.url
    if json:
        _print_json([i.as_dict() if isinstance(i, ColdStoreError) else i for i in found])
    elif found:
        terminal.console().print(terminal.snapshots(found))
    else:
        print(f"No snapshots in {where}.")


def _check_date(date: str | None) -> None:
    from datetime import date as day

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
    with _opened(config, url=store_url) as store:
        manifest = store.manifest(snapshot_id)
        where = store.store.url
    if json:
        _print_json(manifest)
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
    with _opened(config, url=store_url) as store:
        document = StoredDocument(store.store, store.manifest(snapshot_id))
        if uid is None and tier is None:
            for chunk in document.chunks():
                _write(chunk)
            return
        found = 0
        for found, row in enumerate(_rows(document, uid, tier), 1):  # noqa: B007
            _write(bytes(row) + b"\n")
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
    with _opened(config, url=store_url) as store, terminal.progress(quiet=json) as progress:
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
            progress=progress,
        )
    if json:
        _print_json(report.as_dict())
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
def verify(
    snapshot_id: SnapshotId = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Every snapshot in the store.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte; compare hashes, rows and digests.")] = False,
    store_url: StoreUrl = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Check that snapshots are whole: manifest and sizes, and with --deep every byte. Exit code 9 when one is not."""
    if (snapshot_id is None) == (not everything):
        raise ConfigError("say what to verify", hint="coldstore verify ID, or coldstore verify --all.")
    with _opened(config, url=store_url) as store, terminal.progress(quiet=json) as progress:
        verdicts = list(store.verify(snapshot_id, deep=deep, progress=progress))
        if not verdicts:  # all of nothing is whole, but whoever asks believes that there is something
            raise NotFound(f"there is no snapshot in {store.store.url}", hint="Check --store, COLD_STORE_* or coldstore.toml.")
        strays = store.orphans() if everything else []
    bad = [v for v in verdicts if not v.ok]
    if json:
        _print_json({"ok": not bad, "checked": len(verdicts), "results": [v.as_dict() for v in verdicts], "orphans": strays})
    else:
        for verdict in verdicts:
            print(f"{'ok     ' if verdict.ok else 'DAMAGED'} {verdict.id}  {verdict.rows:,} rows, {terminal.size(verdict.bytes)}")
            for problem in verdict.problems:
                print(f"        {problem}")
        for key in strays:
            print(f"no snapshot's {terminal.printable(key)}")
        print(f"{len(verdicts)} checked{' deeply' if deep else ''}, {len(bad)} damaged")
    if bad:
        raise typer.Exit(VerifyFailed.exit_code)


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
        _print_json(result)


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
        with _printing():
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output went away (`| head`)
        _abandon_output()
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


def _abandon_output() -> None:
    """Python would complain once more when it flushes standard output at exit."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
