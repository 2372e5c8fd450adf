"""One picture of all targets: how far each figure is from its limit, every sample a dot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.cases import Line
from benchmarks.report import target

_MET, _MISSED, _DOT = "#2a7f62", "#c0392b", "#00000055"


def draw(lines: Sequence[Line], path: Path) -> None:
    """Left of the line is better than asked for. The scale is logarithmic: half and double are equally far from it."""
    import matplotlib as mpl

    mpl.use("svg")
    # The same figures give the same file.
    mpl.rcParams.update({"svg.hashsalt": "coldstore", "font.family": "DejaVu Sans", "font.size": 9})
    import matplotlib.pyplot as plt

    judged = [line for line in lines if line.judged is not None]
    figure, axes = plt.subplots(figsize=(9.5, 0.9 + 0.36 * len(judged)), layout="constrained")
    for row, line in enumerate(judged):
        values = sorted(_distance(line, v) for v in line.judged.values)  # type: ignore[union-attr]
        colour = _MET if line.met else _MISSED
        axes.hlines(row, values[0], values[-1], color=colour, linewidth=2.5, alpha=0.5)
        if len(values) <= 20:
            axes.plot(values, [row] * len(values), "o", color=_DOT, markersize=3, markeredgewidth=0)
        axes.plot([_distance(line, line.reached)], [row], "D", color=colour, markersize=6)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(judged)), [_label(line) for line in judged])
    axes.invert_yaxis()
    axes.grid(axis="x", which="both", alpha=0.2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if value in {0.2, 0.5, 2, 5} else "")
    axes.set_xlabel("figure ÷ target, less is better; ◆ median, dots: rounds")
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)


def _distance(line: Line, value: float) -> float:
    return line.limit / value if line.at_least else value / line.limit


def _label(line: Line) -> str:
    peer = f" of {line.peer_name}" if line.on == "ratio" else ""
    return f"{line.what}\n{target(line)}{peer}"
