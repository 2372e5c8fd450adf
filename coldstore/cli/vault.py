"""Commands for an agent whose memory is a folder of files: saved, watched, brought back. They ask no database."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from coldstore import folders, terminal
from coldstore.cli.common import Config, Json, Label, StoreUrl, app, print_json, refuse_empty, say_json, say_line
from coldstore.config import load
from coldstore.errors import ColdStoreError, ConfigError
from coldstore.files import difference
from coldstore.files.place import Placing, place
from coldstore.files.tree import Tree, read_tree
from coldstore.vault import MemoryVault, VaultSnapshot

vault_app = typer.Typer(name="vault", help="An agent's own files, without a database.", rich_markup_mode=None)
app.add_typer(vault_app)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder with the agent's files.")]
Agent = Annotated[str, typer.Option("--agent", envvar="COLD_STORE_AGENT", help="Whose memory it is.")]


@contextmanager
def _opened(agent: str, store_url: str | None, config: Path | None) -> Iterator[MemoryVault]:
    refuse_empty(url=store_url)
    with MemoryVault(agent, settings=load(config=config, flags={"url": store_url})) as vault:
        yield vault


@vault_app.command("backup")
def backup(
    folder: Folder,
    *,
    agent: Agent,
    label: Label = None,
    keep: Annotated[int | None, typer.Option("--keep", min=1, help="Prune afterwards: keep so many of this label.")] = None,
    accept: Annotated[bool, typer.Option("--accept", help="Good, even if it holds far less than the one before.")] = False,
    store_url: StoreUrl = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Save all files of a folder as one snapshot. Links are not followed, and named; a file that cannot be read is an error."""
    with _opened(agent, store_url, config) as vault:
        info, tree = folders.backup(vault, folder, label=label, accept=accept)
        pruned = vault.prune(keep=keep, label=label) if keep else []
        where = vault.store.url
    if json:
        print_json({**info.as_dict(), "leftOut": tree.left_out, "settled": tree.settled, "pruned": pruned})
        return
    print(f"{info.id}  {info.documents:,} files, {terminal.size(info.bytes)}, in {where}")
    _notes(tree)


def _notes(tree: Tree) -> None:
    for name, kind in tree.left_out.items():
        print(f"note: left out {terminal.printable(name)}: {kind}", file=sys.stderr)
    if not tree.settled:
        print("note: somebody wrote to the folder while it was read: its files may be of different moments", file=sys.stderr)


@vault_app.command("restore")
def restore(
    folder: Folder,
    *,
    agent: Agent,
    label: Label = None,
    snapshot: Annotated[str | None, typer.Option("--snapshot", help="A snapshot's id, instead of the newest.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Where a file differs, take the snapshot's.")] = False,
    mirror: Annotated[
        bool, typer.Option("--mirror", help="Make the folder exactly the snapshot: also remove files that it does not have.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the difference; change nothing.")] = False,
    store_url: StoreUrl = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Bring files back into a folder, all or none, by default the newest snapshot's.

    Without --overwrite or --mirror it adds what is missing, and refuses when a file is there that differs: it may be newer. The folder is
    prepared beside the old one and takes its place in one step.
    """
    how = Placing("replace") if mirror else Placing("merge", "update" if overwrite or dry_run else "fail")
    with _opened(agent, store_url, config) as vault:
        plan, info = folders.plan_restore(vault, folder, how=how, label=label, snapshot_id=snapshot)
        if not dry_run:
            place(plan)
    tell_placed(plan, info.id, dry_run=dry_run, json=json)


def tell_placed(plan: Any, snapshot: str, *, dry_run: bool, json: bool) -> None:
    """What was, or would be, done to a folder."""
    told = difference.as_dict(plan)
    if json:
        print_json({"id": snapshot, "dryRun": dry_run, **told})
        return
    for line in difference.lines(plan) if dry_run else ():
        print(terminal.printable(line))
    counts = ", ".join(f"{len(told[kind]):,} {kind}" for kind in ("added", "changed", "removed", "kept") if told[kind])
    verb = "would restore" if dry_run else "restored"
    print(f"{verb} {snapshot} to {plan.folder}: {counts + ', ' if counts else ''}{told['unchanged']:,} unchanged")


@vault_app.command("watch")
def watch(
    folder: Folder,
    *,
    agent: Agent,
    quiet: Annotated[float, typer.Option("--quiet", min=0, help="Seconds without a change before it is saved.")] = 2.0,
    at_most: Annotated[float, typer.Option("--at-most", min=0, help="Seconds that changes may stay unsaved.")] = 60.0,
    poll: Annotated[float, typer.Option("--poll", min=0.01, help="Seconds between two looks.")] = 1.0,
    keep: Annotated[int | None, typer.Option("--keep", min=1, help="Prune after each: keep so many.")] = None,
    store_url: StoreUrl = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Save a folder whenever it changed, until SIGTERM or Ctrl-C, and then once more under the label shutdown if something is unsaved.

    What happens is told on standard error, a line each; with --json on standard output, one JSON object a line. While the store does not
    answer it tries again, ever more rarely. Stopped twice it does not wait for the last save.
    """
    say = say_json if json else say_line
    with _opened(agent, store_url, config) as vault:

        def saved(info: VaultSnapshot) -> None:
            say(f"saved {info.documents:,} files as {info.id}", snapshot=info.id, label=info.label)
            if keep and info.label is None:
                try:
                    vault.prune(keep=keep)
                except ColdStoreError as exc:
                    say(f"saved, but not pruned: {exc}")

        _notes(read_tree(folder))
        service = folders.watch(vault, folder, say=say, saved=saved, poll=poll, quiet=quiet, at_most=at_most)

        def stop(number: int, _frame: FrameType | None) -> None:
            service.stop()
            signal.signal(number, signal.SIG_DFL)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, stop)
        say(f"watching {folder}", folder=str(folder))
        service.run()


@vault_app.command("list")
def list_snapshots(
    *,
    agent: Agent,
    label: Label = None,
    store_url: StoreUrl = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """An agent's snapshots, newest first. One that is damaged is listed with what is wrong."""
    with _opened(agent, store_url, config) as vault:
        found = vault.list_snapshots(label=label)
    if json:
        print_json([s.as_dict() for s in found])
        return
    width = max((len(s.id) for s in found), default=0)
    for s in found:
        facts = s.problem or s.suspect or f"{s.documents:,} documents, {terminal.size(s.stored_bytes)}"
        print("  ".join(filter(None, (f"{s.id:<{width}}", s.created, s.label, terminal.printable(facts)))))
    if not found:
        print(f"Agent {agent} has no snapshot yet.")


@vault_app.command("status")
def status(*, agent: Agent, store_url: StoreUrl = None, config: Config = None, json: Json = False) -> None:
    """What an agent's snapshots take, and what its quota leaves."""
    with _opened(agent, store_url, config) as vault:
        found, latest, where = vault.status(), vault.latest(), vault.store.url
    if json:
        print_json({**found.as_dict(), "latest": latest.id if latest else None})
        return
    quota = "none" if found.quota_bytes is None else f"{terminal.size(found.quota_bytes)}, {terminal.size(found.available_bytes or 0)} left"
    pairs = [
        ("store", where),
        ("used", f"{terminal.size(found.used_bytes)} in {found.file_count:,} objects"),
        ("quota", quota),
        ("latest", f"{latest.id}, {latest.created}" if latest else "there is none"),
    ]
    print(terminal.facts(pairs))


@vault_app.command("prune")
def prune(
    *,
    agent: Agent,
    keep: Annotated[int, typer.Option("--keep", min=1, help="So many of the newest stay.")],
    label: Label = None,
    yes: Annotated[bool, typer.Option("--yes", help="Really delete; without it nothing is done.")] = False,
    store_url: StoreUrl = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Delete an agent's older snapshots: those without a label, or those with one. What `vault restore` gives always stays."""
    with _opened(agent, store_url, config) as vault:
        if not yes:
            there = sum(s.label == label for s in vault.list_snapshots())
            raise ConfigError(
                f"up to {max(0, there - keep):,} of {there:,} snapshots would be deleted for ever", hint="Add --yes to do it."
            )
        done = vault.prune(keep=keep, label=label)
    if json:
        print_json({"deleted": done})
    else:
        print(f"{len(done)} snapshots deleted.")
