"""Lines as sentences for the terminal, as the page `RESULTS.md`, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.cases import Line
from benchmarks.measure import Spread

_HEAD = ("What", "Target", "coldstore", "Beside it", "", "Ratio", "Verdict")


def sentence(line: Line) -> str:
    ratio = f"  ratio {_three(line.ratio)}" if line.ratio else ""
    peer = f"  {line.peer_name} {_three(line.peer)}" if line.peer else ""
    return f"{line.what}: {_three(line.ours)} {line.unit}{peer}{ratio}  {verdict(line)}"


def target(line: Line) -> str:
    if line.on is None:
        return ""
    sign = "≥" if line.at_least else "≤"
    return f"{sign} {line.limit:g} ×" if line.on == "ratio" else f"{sign} {line.limit:g} {line.unit}"


def verdict(line: Line) -> str:
    """Whether the median meets the target, and if not, by how much."""
    if line.met is None:
        return ""
    if line.met:
        return "met"
    return f"missed: {_figure(line.reached)}, {abs(line.reached / line.limit - 1):.0%} {'below' if line.at_least else 'above'}"


def markdown(lines: Sequence[Line], facts: Mapping[str, str], *, picture: str | None, broken: Sequence[str] = ()) -> str:
    judged = [line for line in lines if line.met is not None]
    met = sum(bool(line.met) for line in judged)
    parts = [
        "# What was measured",
        "",
        "Written by `python -m benchmarks`; do not edit. [README.md](README.md) says what each line measures and why it is fair.",
        "",
        f"**{met} of {len(judged)} targets met.** Each figure is *minimum – median – maximum* over the rounds; a ratio is of two runs of the",
        "same round, side by side. The median decides.",
        "",
    ]
    parts += [f"**The case {name} broke off and is incomplete.**\n" for name in broken]
    if picture:
        parts += [f"![every target and the figures beside it]({picture})", ""]
    parts += ["| " + " | ".join(_HEAD) + " |", "|" + "---|" * len(_HEAD)]
    parts += ["| " + " | ".join(cell.replace("|", "\\|") for cell in _cells(line)) + " |" for line in lines]
    parts += ["", "## Behind the figures", ""]
    parts += [f"- {text}" for line in lines if (text := _details(line))]
    parts += ["", "## The machine", "", "| | |", "|---|---|"]
    parts += [f"| {name} | {fact} |" for name, fact in facts.items()]
    return "\n".join(parts) + "\n"


def _cells(line: Line) -> list[str]:
    what = f"{line.what}. *{line.note}*" if line.note else line.what
    peer = f"{_three(line.peer)} {line.unit}" if line.peer else ""
    verdict_ = verdict(line)
    return [
        what,
        target(line),
        f"{_three(line.ours)} {line.unit}",
        line.peer_name,
        peer,
        _three(line.ratio) if line.ratio else "",
        f"**{verdict_}**" if verdict_ not in {"", "met"} else verdict_,
    ]


def _details(line: Line) -> str:
    d = dict(line.details)
    said = []
    if d.get("bytes"):
        said.append(f"{d['bytes'] / 1e6:.0f} MB of JSON at {d['bytes'] / 1e6 / line.ours.middle:.0f} MB/s")
        said.append(f"stored in {d['stored'] / 1e6:.0f} MB, {line.peer_name} in {d['peer stored'] / 1e6:.0f} MB")
    if "cpu" in d:
        said.append(
            f"CPU of coldstore {d['cpu']:.1f} s and of its server {d['server']:.1f} s,"
            f" of {line.peer_name} {d['peer cpu']:.1f} s and of its server {d['peer server']:.1f} s"
        )
    if said:
        return f"{line.what}: {'; '.join(said)}"
    if "p95" in d:
        return f"{line.what}: 95 of 100 within {d['p95']:.1f} ms"
    if d:
        whole = sum(d.values())
        return f"{line.what}: " + ", ".join(f"{step} {seconds:.1f} s ({seconds / whole:.0%})" for step, seconds in d.items())
    return ""


def _three(found: Spread | None) -> str:
    return "" if found is None else " – ".join(_figure(value) for value in (found.low, found.middle, found.high))


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def as_json(lines: Sequence[Line], facts: Mapping[str, str]) -> dict[str, Any]:
    return {"facts": dict(facts), "lines": [asdict(line) | {"met": line.met, "target": target(line)} for line in lines]}
