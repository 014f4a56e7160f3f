"""One picture for each finding, drawn from its runs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from findings.cases import COMPARISONS, NORMS
from findings.figures import KL, NEW_AFTER, OLD_AFTER, PERPLEXITY, USAGE
from findings.results import Finding

matplotlib.use("agg")


def draw(finding: Finding, path: Path) -> Path:
    """Draw the picture of a finding. Returns `path`."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    _PICTURES[finding.finding](finding, left, right)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    return path


def _dots(axes: Axes, title: str, cases: Mapping[str, list[float]]) -> None:
    """A dot for every figure of each case, and a bar at their mean."""
    for name, figures in cases.items():
        axes.plot(figures, [name] * len(figures), "o", color="#4c78a8", markersize=4)
        axes.plot([statistics.mean(figures)], [name], "|", color="black", markersize=14)
    axes.invert_yaxis()
    axes.margins(y=0.15)
    axes.set_title(title)
    axes.grid(alpha=0.3, axis="x")


def _lines(axes: Axes, title: str, lines: Mapping[str, Mapping[int, float]]) -> None:
    """A figure against the rows of the table, a line for each entry."""
    for label, figures in lines.items():
        axes.plot(list(figures), list(figures.values()), marker="o", markersize=3, label=label)
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set(title=title, xlabel="rows of the table (K)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def _trained(finding: Finding, figure: str) -> dict[str, list[float]]:
    cases = COMPARISONS[finding.finding].cases
    found = {case.name: list(finding.by_seed(case.name, figure).values()) for case in cases}
    return {name: figures for name, figures in found.items() if figures}


def _rated(finding: Finding, rate: str) -> dict[str, list[float]]:
    cases = COMPARISONS[finding.finding].cases
    return {
        case.name: figures for case in cases if (figures := list(finding.by_round(case.name, rate).values()))
    }


def _depth(finding: Finding, left: Axes, right: Axes) -> None:
    _dots(left, "test perplexity", _trained(finding, PERPLEXITY))
    _dots(right, "inference, tokens/s", _rated(finding, "inference_tokens_per_second"))


def _two_figures(second: str, title: str) -> Callable[[Finding, Axes, Axes], None]:
    def picture(finding: Finding, left: Axes, right: Axes) -> None:
        _dots(left, "test perplexity", _trained(finding, PERPLEXITY))
        _dots(right, title, _trained(finding, second))

    return picture


def _forgetting(finding: Finding, left: Axes, right: Axes) -> None:
    _dots(left, "old text, test perplexity after", _trained(finding, OLD_AFTER))
    _dots(right, "new text, test perplexity after", _trained(finding, NEW_AFTER))


def _flat_keys(finding: Finding, left: Axes, right: Axes) -> None:
    _dots(left, "share of slots used", _trained(finding, USAGE))
    _dots(right, "training, tokens/s", _rated(finding, "training_tokens_per_second"))


def _batch_norm(finding: Finding, left: Axes, right: Axes) -> None:
    cases = COMPARISONS[finding.finding].cases
    for axes, figure, title in ((left, USAGE, "share of slots used"), (right, KL, "KL to uniform (nats)")):
        found = _trained(finding, figure)
        lines = {
            norm: {
                case.x: statistics.mean(found[case.name])
                for case in cases
                if case.name.endswith(norm) and case.name in found
            }
            for norm in NORMS.values()
        }
        _lines(axes, title, lines)


def _scaling(finding: Finding, left: Axes, right: Axes) -> None:
    cases = COMPARISONS[finding.finding].cases

    def line(rate: str) -> dict[int, float]:
        found = _rated(finding, f"{rate}_tokens_per_second")
        return {case.x: statistics.median(found[case.name]) for case in cases if case.name in found}

    _lines(left, "tokens/s", {"training": line("training"), "inference": line("inference")})
    _lines(right, "selection, tokens/s", {"selection": line("selection")})


_PICTURES: dict[str, Callable[[Finding, Axes, Axes], None]] = {
    "depth": _depth,
    "batch_norm": _batch_norm,
    "flat_keys": _flat_keys,
    "position": _two_figures(KL, "KL to uniform (nats)"),
    "heads_k": _two_figures(USAGE, "share of slots used"),
    "scaling": _scaling,
    "successors": _two_figures(USAGE, "share of slots used"),
    "revival": _two_figures(USAGE, "share of slots used"),
    "forgetting": _forgetting,
}
