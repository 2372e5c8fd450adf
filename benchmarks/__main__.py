"""`python -m benchmarks`: every case, then the report and the picture. Figures only: no result makes it fail.

A whole run at the usual size writes `RESULTS.md` and `results.svg` beside this file (`-large` with `--large`); a part of one only prints,
unless told where to write with `--out`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from pathlib import Path

from benchmarks import machine, plot, report
from benchmarks.cases import CASES, LARGE_CASES, Line
from benchmarks.world import LARGE, USUAL, World

HERE = Path(__file__).parent


def main() -> None:
    options = _options()
    started = time.monotonic()
    size = options.size_mb * 1_000_000 if options.size_mb else LARGE if options.large else USUAL
    cases = LARGE_CASES if options.large else CASES
    whole = not options.only and not options.rounds and not options.size_mb
    out = options.out or (HERE if whole else None)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    facts = machine.facts()
    lines: list[Line] = []
    broken: list[str] = []
    with World(HERE / ".work", size, large=options.large, rounds=options.rounds, keep=options.keep, say=_say) as world:
        facts |= machine.server_facts(world)
        for name in options.only or cases:
            _say(f"\n{name}: {cases[name].__doc__}")
            try:
                for line in cases[name](world):
                    lines.append(line)
                    _say(f"  {report.sentence(line)}")
            except Exception:  # noqa: BLE001
                # Half an hour of figures is not thrown away for one case; that it broke is said, and the exit code says it too.
                broken.append(name)
                _say(traceback.format_exc())
    facts["Took"] = f"{(time.monotonic() - started) / 60:.0f} minutes"
    text = report.markdown(lines, facts, picture=None, broken=broken)
    _say("\n" + text)
    if options.json:
        options.json.write_text(json.dumps(report.as_json(lines, facts), indent=1) + "\n")
    if out is not None:
        suffix = "-large" if options.large else ""
        picture = out / f"results{suffix}.svg"
        plot.draw(lines, picture)
        (out / f"RESULTS{suffix}.md").write_text(report.markdown(lines, facts, picture=picture.name, broken=broken))
        _say(f"written to {out}")
    sys.exit(1 if broken else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="How fast coldstore is beside pg_dump, pg_restore and s3fs.")
    parser.add_argument("--large", action="store_true", help="5 GB instead of 500 MB, and memory compared between the two")
    parser.add_argument("--only", action="append", choices=list(CASES | LARGE_CASES), help="this case (may be repeated)")
    parser.add_argument("--rounds", type=int, help="as many rounds of everything")
    parser.add_argument("--size-mb", type=int, help="megabytes of data")
    parser.add_argument("--json", type=Path, help="also write every sample to this file")
    parser.add_argument("--out", type=Path, help="folder for the report; default: beside this program, after a whole run")
    parser.add_argument("--keep", action="store_true", help="keep the data for another run of the same size")
    options = parser.parse_args()
    for name in options.only or ():
        if name not in (LARGE_CASES if options.large else CASES):
            parser.error(f"{name} is {'not a case of' if options.large else 'a case of'} --large")
    return options


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
