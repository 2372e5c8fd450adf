"""Commands that keep a store from growing for ever: what goes and why, the bucket's own rules, and where pointers lead."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from coldstore import terminal
from coldstore.catalog import rfc3339
from coldstore.cli.common import Config, Json, StoreUrl, Uid, Workspace, app, opened, print_json
from coldstore.errors import ConfigError, PruneIncomplete, VerifyFailed
from coldstore.prune import Report


@app.command()
def prune(
    *,
    keep_last: Annotated[int | None, typer.Option("--keep-last", min=1, help="Keep so many of the newest.")] = None,
    keep_days: Annotated[int | None, typer.Option("--keep-days", min=1, help="Keep what is younger.")] = None,
    daily: Annotated[int | None, typer.Option("--daily", min=1, help="Keep the newest of each of so many days.")] = None,
    weekly: Annotated[int | None, typer.Option("--weekly", min=1, help="Keep the newest of each of so many weeks.")] = None,
    monthly: Annotated[int | None, typer.Option("--monthly", min=1, help="Keep the newest of each of so many months.")] = None,
    preset: Annotated[str | None, typer.Option("--preset", help="free, pro or enterprise: 7, 30 or 365 days.")] = None,
    keep_labels: Annotated[
        bool | None, typer.Option("--keep-labels/--no-keep-labels", help="Whether what has a label stays. It does, by default.")
    ] = None,
    everybody: Annotated[bool, typer.Option("--all", help="Only all-user snapshots.")] = False,
    uid: Uid = None,
    workspace: Workspace = None,
    yes: Annotated[bool, typer.Option("--yes", help="Really delete; without it nothing is done.")] = False,
    store_url: StoreUrl = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Delete the snapshots that the retention policy does not keep. Exit code 12 when something could not be deleted.

    The policy is that of `[retention]`; rules given here take the place of all of those. It holds for each scope by itself. Whatever it
    says, these stay: the newest good ones (three, or `floor`), what something kept is built on, what is locked or damaged. Without --uid,
    --workspace or --all, what dead processes left behind goes too.
    """
    if everybody and (uid is not None or workspace is not None):
        raise ConfigError("choose one of --all, --uid and --workspace")
    with opened(config, url=store_url) as store, terminal.progress(quiet=json) as progress:
        policy = store.policy(
            last=keep_last, days=keep_days, daily=daily, weekly=weekly, monthly=monthly, preset=preset, labels=keep_labels
        )
        report = store.prune(policy, uid=uid, workspace=workspace, everybody=everybody, dry_run=not yes, progress=progress)
    if json:
        print_json(report.as_dict())
    else:
        for line in _lines(report):
            print(line)
    if yes and not report.ok:
        raise typer.Exit(PruneIncomplete.exit_code)


def _lines(report: Report) -> Iterator[str]:
    width = max((len(d.snapshot.id) for d in report.decisions), default=0)
    for decision in report.decisions:
        at = rfc3339(decision.snapshot.at)[:16].replace("T", " ")
        why = terminal.printable("; ".join(decision.reasons)) or "no rule keeps it"
        yield f"{'keep' if decision.keep else 'drop'}  {decision.snapshot.id:<{width}}  {at}  {why}"
    yield from (f"left over    {terminal.printable(key)}" for key in (*report.orphans, *report.unfinished))
    yield from (f"a stranger's {terminal.printable(key)}" for key in report.strangers)
    yield from (f"locked       {terminal.printable(f'{what}: {why}')}" for what, why in report.locked.items())
    yield from (f"FAILED       {terminal.printable(f'{what}: {why}')}" for what, why in report.failures.items())
    going, left = len(report.going), len(report.orphans) + len(report.unfinished)
    kept = len(report.decisions) - going
    if report.dry_run:
        yield f"{kept} kept, {going} would be deleted, {left} left over. Nothing was done; --yes does it."
    else:
        yield f"{kept} kept, {len(report.deleted)} deleted, {len(report.swept)} left over swept, {len(report.failures)} failed."


@app.command()
def lifecycle(
    *,
    form: Annotated[str | None, typer.Option("--format", help="s3 or gcs. Default: what the store is.")] = None,
    expire: Annotated[
        bool, typer.Option("--expire", help="Also remove snapshots by their age, where the policy is by days alone; see the notes.")
    ] = False,
    store_url: StoreUrl = None,
    config: Config = None,
) -> None:
    """Print lifecycle rules for the bucket, as its own tool takes them: unfinished uploads and old versions go. Notes on standard error say
    what the rules cannot."""
    with opened(config, url=store_url) as store:
        rules = store.lifecycle(form, expire=expire)
    print_json(rules.configuration)
    for note in rules.notes:
        print(f"note: {note}", file=sys.stderr)


@app.command()
def pointers(
    *,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Put right what is wrong.")] = False,
    store_url: StoreUrl = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Check that `latest/` and `checkpoints/` lead to the newest good snapshots. Exit code 9 when one does not.

    Nothing in coldstore depends on them; other programs may. A pointer to a snapshot that is gone can be the only trace of its removal: ask
    `coldstore verify --all` before you rebuild.
    """
    with opened(config, url=store_url) as store:
        rebuilt = store.rebuild_pointers() if rebuild else []
        right, found = store.check_pointers()
    wrong = [w for w in found if w.ours]
    strangers = [w for w in found if not w.ours]
    if json:
        lists = {"wrong": wrong, "strangers": strangers, "rebuilt": rebuilt}
        print_json({"ok": not wrong, "pointers": right, **{name: [w.as_dict() for w in each] for name, each in lists.items()}})
    else:
        for state, each in (("rebuilt   ", rebuilt), ("wrong     ", wrong), ("a stranger", strangers)):
            for pointer in each:
                print(f"{state}  {terminal.printable(pointer.key)}: {terminal.printable(pointer.problem)}")
        print(f"{right} checked, {len(wrong)} wrong")
    if wrong:
        raise typer.Exit(VerifyFailed.exit_code)
