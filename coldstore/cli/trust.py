"""Commands that prove what is in the store, and that keep its keys and its end in order."""

from __future__ import annotations

import random
import re
from datetime import date
from typing import Annotated

import typer

from coldstore import terminal
from coldstore.cli.common import Config, Json, Label, RequireSignature, SnapshotId, StoreUrl, app, opened, print_json
from coldstore.errors import ConfigError, KeyRingError, NotFound, SignatureError, VerifyFailed

_SAMPLE = re.compile(r"(\d{1,3}(?:\.\d+)?)%")


@app.command()
def verify(
    snapshot_id: SnapshotId = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Every snapshot in the store.")] = False,
    since: Annotated[str | None, typer.Option("--since", help="Those since this UTC day, 2026-02-26.")] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte; compare hashes, rows and digests.")] = False,
    sample: Annotated[str | None, typer.Option("--sample", help="Read a random part of the bytes, 5%.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the sample, to take the same again.")] = None,
    require_signature: RequireSignature = None,
    store_url: StoreUrl = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Check that snapshots are whole: manifest, signature, succession and sizes, with --sample or --deep the bytes.

    Exit code 9 when one is damaged, else 11 when a required signature is missing, else 10 when no key ring opens one.

    --all also follows every scope from snapshot to snapshot, and so notices one that was removed, and lists objects that are no snapshot's.
    """
    if sum([snapshot_id is not None, everything, since is not None]) != 1:
        raise ConfigError("say what to verify", hint="coldstore verify ID, coldstore verify --all, or coldstore verify --since DATE.")
    if deep and sample is not None:
        raise ConfigError("choose one of --deep and --sample")
    _check_day(since)
    share = _share(sample)
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    with opened(config, url=store_url) as store, terminal.progress(quiet=json) as progress:
        verdicts = store.verify(
            snapshot_id, since=since, deep=deep, sample=share, seed=seed, require_signature=require_signature, progress=progress
        )
        if not verdicts:  # all of nothing is whole, but whoever asks believes that there is something
            raise NotFound(f"there is no such snapshot in {store.store.url}", hint="Check --store, COLD_STORE_* or coldstore.toml.")
        strays = store.orphans() if everything else []
    bad = [v for v in verdicts if not v.ok]
    if json:
        sampled = {"sample": share, "seed": seed} if share else {}
        results = [v.as_dict() for v in verdicts]
        print_json({"ok": not bad, "checked": len(verdicts), "results": results, "orphans": strays, **sampled})
    else:
        terminal.console().print(terminal.verdicts(verdicts))
        for key in strays:
            print(f"no snapshot's {terminal.printable(key)}")
        depth = " deeply" if deep else f", {sample} of the frames (--seed {seed})" if share else ""
        counts = "".join(f", {n} {state}" for state in _EXIT_CODES if (n := sum(v.state == state for v in bad)) or state == "damaged")
        print(f"{len(verdicts)} checked{depth}{counts}")
    if bad:
        raise typer.Exit(next(code for state, code in _EXIT_CODES.items() if any(v.state == state for v in bad)))


#: The worst first: whoever reads one number should read that one.
_EXIT_CODES = {"damaged": VerifyFailed.exit_code, "untrusted": SignatureError.exit_code, "unopened": KeyRingError.exit_code}


def _check_day(text: str | None) -> None:
    try:
        date.fromisoformat(text or "2026-02-26")
    except ValueError:
        raise ConfigError(f"{text!r} is not a date", hint="Write it as 2026-02-26.") from None


def _share(sample: str | None) -> float:
    if sample is None:
        return 0.0
    match = _SAMPLE.fullmatch(sample)
    share = float(match[1]) / 100 if match else 0.0
    if not 0 < share <= 1:
        raise ConfigError(f"{sample!r} is not a share", hint="Write it as --sample 5%.")
    return share


@app.command()
def rewrap(
    snapshot_id: SnapshotId = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Every sealed snapshot in the store.")] = False,
    store_url: StoreUrl = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Wrap the data keys of sealed snapshots for the key rings that are configured now; documents and manifests stay as they are.

    For after a rotation, and for a key ring that was added. The old forms stay in the manifests: what takes them away is the end of the
    old key.
    """
    if (snapshot_id is None) == (not everything):
        raise ConfigError("say what to rewrap", hint="coldstore rewrap ID, or coldstore rewrap --all.")
    with opened(config, url=store_url) as store:
        done = store.rewrap(snapshot_id)
    if json:
        print_json({"rewrapped": done})
    else:
        print("\n".join([*done, f"{len(done)} snapshots rewrapped."]))


@app.command()
def compact(
    snapshot_id: Annotated[str, typer.Argument(metavar="ID", help="The id of an incremental snapshot, as `list` shows it.")],
    *,
    label: Label = None,
    store_url: StoreUrl = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Write a new full snapshot of what an incremental one comes to with all it is built on. Asks no database.

    It is a point to restore from that needs no other; the old chain can then be deleted. Incremental snapshots go on from the database's
    own last one, never from this copy.
    """
    with opened(config, url=store_url) as store, terminal.progress(quiet=json) as progress:
        info = store.compact(snapshot_id, label=label, progress=progress)
    if json:
        print_json(info)
    else:
        print(f"{info.id}: {sum(info.rows.values()):,} rows, {terminal.size(info.stored_bytes)}, made from the chain of {snapshot_id}")


@app.command()
def delete(
    snapshot_ids: Annotated[list[str], typer.Argument(metavar="ID…", help="Ids of snapshots, as `list` shows them.")],
    *,
    cascade: Annotated[bool, typer.Option("--cascade", help="Also the incremental snapshots that are built on them.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Really delete; without it nothing is done.")] = False,
    store_url: StoreUrl = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Delete snapshots for ever. A record of it stays, so that `verify` knows that they were not lost.

    One that must still be kept (`retain_days`) is refused with its date, and one that others are built on without --cascade; then none is
    deleted.
    """
    with opened(config, url=store_url) as store:
        found = [store.manifest(snapshot) for snapshot in snapshot_ids]
        found += store.built_on(found) if cascade else []
        if not yes:
            raise ConfigError(
                f"{len(found)} snapshots with {sum(sum(m.rows().values()) for m in found):,} rows would be deleted for ever",
                hint="Nothing was done. Add --yes to delete them.",
            )
        done = store.delete(snapshot_ids, cascade=cascade)
    if json:
        print_json({"deleted": done})
    else:
        print(f"{len(done)} snapshots deleted.")
