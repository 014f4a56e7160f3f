"""One picture for each benchmark, drawn from its measurements."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.results import BenchmarkRun

matplotlib.use("agg")

_FORWARD_AND_BACKWARD = "forward + backward"


def draw(run: BenchmarkRun, path: Path) -> Path:
    """Draw the picture of a run. Returns `path`."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _PICTURES[run.benchmark](run, left, right)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def _lines(
    axes: Axes, run: BenchmarkRun, what: str, x: str, label: str, colour: str | None = None, **case: str | int
) -> None:
    """The medians of `what` in the given case against the part `x` of the case, with their quartiles."""
    found = run.find(what, **case)
    if not found:
        return
    at = [int(measurement.case[x]) for measurement in found]
    medians = [measurement.median for measurement in found]
    (line,) = axes.plot(at, medians, marker="o", markersize=3, label=label, color=colour)
    lows, highs = [measurement.low for measurement in found], [measurement.high for measurement in found]
    axes.fill_between(at, lows, highs, color=line.get_color(), alpha=0.15)


def _finish(axes: Axes, title: str, x: str, y: str, *, log_y: bool) -> None:
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.set_xscale("log", base=2)
    if log_y:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if axes.get_lines():  # a peer that is not installed leaves its axes empty
        axes.legend(fontsize=7)


def _cases(run: BenchmarkRun, what: str, part: str) -> list[str]:
    """The values of one part of the case of `what`, in their order."""
    return list(
        dict.fromkeys(
            str(measurement.case[part]) for measurement in run.find(what) if part in measurement.case
        )
    )


def _kernels(run: BenchmarkRun, left: Axes, right: Axes) -> None:
    rates = [found for found in run.measurements if found.unit == "GB/s"]
    names = list(dict.fromkeys(found.what for found in rates))
    for axes, values in ((left, "float32"), (right, "bfloat16")):
        every = run.find("copy", values=values)
        threads = max((int(measurement.case["threads"]) for measurement in every), default=1)
        for number, what in enumerate(names):
            _lines(axes, run, what, "dim", what, f"C{number}", values=values, threads=threads)
        _finish(axes, f"{values} values, {threads} threads", "row width", "bytes moved (GB/s)", log_y=False)
        if legend := axes.get_legend():
            legend.remove()
    # One for both, beside them: inside it would hide lines.
    left.figure.legend(*left.get_legend_handles_labels(), loc="outside right center", fontsize=7)


def _selection(run: BenchmarkRun, left: Axes, right: Axes) -> None:
    for who in _cases(run, "selection", "who"):
        _lines(left, run, "selection", "n", who, who=who, passes=_FORWARD_AND_BACKWARD)
    _finish(left, "selection, forward and backward", "sub-keys per half (n)", "ms", log_y=True)
    for who in _cases(run, "layer", "who"):
        _lines(right, run, "layer", "n", who, who=who)
    _finish(right, "a training step of the layer", "sub-keys per half (n)", "ms", log_y=True)


def _transport(run: BenchmarkRun, left: Axes, right: Axes) -> None:
    for axes, what in ((left, "gather"), (right, "pooled lookup")):
        for way in _cases(run, what, "way"):
            _lines(axes, run, what, "rows", way, way=way)
        _finish(axes, what, "rows", "ms", log_y=True)
        axes.set_xscale("log", base=10)


def _step(run: BenchmarkRun, left: Axes, right: Axes) -> None:
    _bars(left, run, "training", "model", "ms per step")
    _bars(right, run, "inference", "model", "ms per step")


def _durability(run: BenchmarkRun, left: Axes, right: Axes) -> None:
    _bars(left, run, "training step", "durability", "ms per step")
    _bars(right, run, "bare updates", "durability", "million entries/s")


def _service(run: BenchmarkRun, left: Axes, right: Axes) -> None:
    _bars(left, run, "answer", "kind", "ms")
    _bars(right, run, "answer, 99th percentile", "kind", "ms")


def _data(run: BenchmarkRun, left: Axes, right: Axes) -> None:
    _bars(left, run, "encoding", "by", "million tokens/s")
    _bars(right, run, "memory of all processes", "text", "MiB")


def _bars(axes: Axes, run: BenchmarkRun, what: str, part: str, unit: str) -> None:
    """A bar for each case of `what`, with its quartiles."""
    found = run.find(what)
    names = [str(measurement.case[part]) for measurement in found]
    medians = [measurement.median for measurement in found]
    spread = [
        [measurement.median - measurement.low for measurement in found],
        [measurement.high - measurement.median for measurement in found],
    ]
    axes.barh(names, medians, xerr=spread, color="#4c78a8", error_kw={"elinewidth": 0.8})
    axes.invert_yaxis()
    axes.set(title=what, xlabel=unit)
    axes.grid(alpha=0.3, axis="x")


def _scaling(run: BenchmarkRun, left: Axes, right: Axes) -> None:
    _lines(left, run, "selection", "rows", "selection")
    _finish(left, "selection", "rows of the table (K)", "ms", log_y=True)
    _lines(right, run, "pooled lookup", "rows", "pooled lookup")
    _finish(right, "lookups in one shard", "rows of the table (K)", "million rows/s", log_y=False)


def _plan(run: BenchmarkRun, left: Axes, right: Axes) -> None:
    measured, predicted = run.find("step measured"), run.find("step predicted")
    for way in _cases(run, "step measured", "way"):
        cases = [index for index, found in enumerate(measured) if found.case["way"] == way]
        left.scatter(
            [measured[index].median for index in cases],
            [predicted[index].median for index in cases],
            s=14,
            label=way,
        )
    longest = max(found.median for found in measured)
    left.plot([0, longest], [0, longest], color="grey", linewidth=0.8)
    left.set(title="a step", xlabel="measured (ms)", ylabel="predicted (ms)")
    left.grid(alpha=0.3)
    left.legend(fontsize=7)
    errors = run.find("error")
    names = ["{model}, {shards} shards, {way}".format(**found.case) for found in errors]
    right.barh(names, [found.median for found in errors], color="#4c78a8")
    right.tick_params(axis="y", labelsize=6)
    right.invert_yaxis()
    right.set(title="error of the prediction", xlabel="|predicted / measured - 1|")
    right.grid(alpha=0.3, axis="x")


_PICTURES: dict[str, Callable[[BenchmarkRun, Axes, Axes], None]] = {
    "kernels": _kernels,
    "selection": _selection,
    "transport": _transport,
    "step": _step,
    "scaling": _scaling,
    "durability": _durability,
    "service": _service,
    "plan": _plan,
    "data": _data,
}
