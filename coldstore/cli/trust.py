"""Commands that prove what is in the store."""

from __future__ import annotations

from typing import Annotated

import typer

from coldstore import terminal
from coldstore.cli.common import Config, Json, SnapshotId, StoreUrl, app, opened, print_json
from coldstore.errors import ConfigError, NotFound, VerifyFailed


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
    with opened(config, url=store_url) as store, terminal.progress(quiet=json) as progress:
        verdicts = list(store.verify(snapshot_id, deep=deep, progress=progress))
        if not verdicts:  # all of nothing is whole, but whoever asks believes that there is something
            raise NotFound(f"there is no snapshot in {store.store.url}", hint="Check --store, COLD_STORE_* or coldstore.toml.")
        strays = store.orphans() if everything else []
    bad = [v for v in verdicts if not v.ok]
    if json:
        print_json({"ok": not bad, "checked": len(verdicts), "results": [v.as_dict() for v in verdicts], "orphans": strays})
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
