"""docs/results.md: for every finding its statements with their verdicts, its tables and its picture.

All figures and verdicts come from the files in docs/results; only the words of sections.py are written by hand.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

from benchmarks.report import machine_section, markdown_table
from benchmarks.tables import number
from findings.cases import COMPARISONS
from findings.claims import claims
from findings.figures import NEW_AFTER, NEW_BEFORE, OLD_AFTER, OLD_BEFORE
from findings.plots import draw
from findings.results import Finding, load_finding
from findings.sections import SECTIONS
from findings.verdicts import Claim, Verdict
from memory_store.errors import UsageError

PAGE = Path("docs/results.md")

_HEAD = """# Results

What the paper that introduced product-key memories found (Lample and others, 2019, arXiv:1907.05242), measured again
at a scale that two cores reach. `make findings` trains all of it and writes this page: every figure and every verdict
comes from the files in `docs/results/`, which hold the whole job of each run, its seed, commit and machine. The last
sections compare what came later in the same way.

Each run is one `pkm train` of `findings/base.yaml` with other settings. The text is the State of the Union addresses,
the test text its last ones. Perplexities of such short runs are high; what counts is how they compare. Tables have the mean
over seeds, with the lowest and the highest in brackets.

A statement reproduces if it holds for every seed, and does not if it holds for none; seeds that disagree leave it
undecided. So do fewer than three where it is about perplexities, which differ between seeds by as much as between cases. How
much of a table is used differs far more between cases; where it is less than half, or more than twice, of what the paper has,
a statement reproduces in its direction only.
"""

_SPEEDS = """Rates in tokens per second of processor time, on one thread, all cases in turn in one process with their tables
beside them: the median, with the lowest and the highest. Other work ran on the machine meanwhile, which ratios between
neighbours hardly feel and the rates themselves do: they spread widely, and those of different findings should not be
compared. The trainings ran beside other work too, so that their own speeds say nothing.
"""

# Of a table: the figure, its title, how it is written.
_Columns = tuple[tuple[str, str, Callable[[float], str]], ...]
_TRAINED: _Columns = (
    ("test_perplexity", "test perplexity", "{:.1f}".format),
    ("memory_usage", "slots used", "{:.1%}".format),
    ("kl_to_uniform", "KL to uniform", "{:.2f}".format),
    ("top1_share", "share of the top 1 %", "{:.1%}".format),
    ("dense_parameters", "dense parameters", "{:,.0f}".format),
)


_FINETUNED: _Columns = (
    (OLD_BEFORE, "old text, before", "{:.1f}".format),
    (OLD_AFTER, "after", "{:.1f}".format),
    (NEW_BEFORE, "new text, before", "{:.1f}".format),
    (NEW_AFTER, "after", "{:.1f}".format),
)


def write_report(results: Path, page: Path = PAGE) -> Path:
    """Write the page, and the pictures beside the files in `results`. Raises UsageError if there are no files."""
    findings = recorded_findings(results)
    page.write_text(page_of(findings, results.name), encoding="utf-8")
    for finding in filter(_has_runs, findings):
        draw(finding, results / f"{finding.finding}.png")
    return page


def recorded_findings(results: Path) -> list[Finding]:
    """All findings, those too that have no runs yet. Raises UsageError if none has."""
    found = [load_finding(results, name) for name in COMPARISONS]
    if not any(map(_has_runs, found)):
        raise UsageError(f"{results} has no results; run `python -m findings run all` first.")
    return found


def _has_runs(finding: Finding) -> bool:
    return bool(finding.runs)


def page_of(findings: list[Finding], pictures: str) -> str:
    """The text of the page, whose pictures are in the folder `pictures` beside it."""
    decided = {finding.finding: claims(finding) for finding in findings}
    summary = markdown_table(
        ["finding", "statement", "here"],
        [
            [SECTIONS[name].title, claim.says, _shown(claim.verdict)]
            for name, found in decided.items()
            for claim in found
        ],
    )
    measured = list(filter(_has_runs, findings))
    sections = [_section(finding, decided[finding.finding], pictures) for finding in measured]
    return "\n".join([_HEAD, summary, *sections, machine_section(measured[0].runs[0].machine)])


def _section(finding: Finding, decided: list[Claim], pictures: str) -> str:
    section = SECTIONS[finding.finding]
    parts = [
        f"## {section.title}\n",
        f"{section.about}\n",
        markdown_table(
            ["statement", "measured, seed by seed", "verdict"],
            [[claim.says, claim.measured, _shown(claim.verdict)] for claim in decided],
        ),
    ]
    if section.why and any(claim.verdict is not Verdict.REPRODUCES for claim in decided):
        parts.append(f"{section.why}\n")
    parts.append(f"![{section.title}]({pictures}/{finding.finding}.png)\n")
    if any(run.kind == "training" for run in finding.runs):
        parts.append(_trained(finding, _TRAINED))
    if any(run.kind == "finetuning" for run in finding.runs):
        parts.append(_trained(finding, _FINETUNED))
    if any(run.kind == "speed" for run in finding.runs):
        parts += [_SPEEDS, _rates(finding)]
    return "\n".join(parts)


def _shown(verdict: Verdict) -> str:
    return verdict if verdict is Verdict.REPRODUCES else f"**{verdict}**"


def _trained(finding: Finding, columns: _Columns) -> str:
    """The figures of the trainings, or finetunings, a row a case."""
    rows = []
    for case in COMPARISONS[finding.finding].cases:
        found = [list(finding.by_seed(case.name, figure).values()) for figure, _, _ in columns]
        if seeds := len(found[0]):
            cells = [_spread(figures, form) for figures, (_, _, form) in zip(found, columns, strict=True)]
            rows.append([case.name, str(seeds), *cells])
    return markdown_table(["", "seeds", *(title for _, title, _ in columns)], rows)


def _spread(figures: list[float], form: Callable[[float], str]) -> str:
    """The mean, and the lowest and the highest where they differ."""
    if not figures:
        return ""
    if form(min(figures)) == form(max(figures)):
        return form(statistics.mean(figures))
    return f"{form(statistics.mean(figures))} ({form(min(figures))} to {form(max(figures))})"


def _rates(finding: Finding) -> str:
    """The rates of the cases, and how they compare with those of the first."""
    titles = {
        f"{rate}_tokens_per_second": rate
        for rate in ("training", "inference", "selection")
        if any(f"{rate}_tokens_per_second" in run.figures for run in finding.runs if run.kind == "speed")
    }
    rows = []
    for case in COMPARISONS[finding.finding].cases:
        samples = [list(finding.by_round(case.name, rate).values()) for rate in titles]
        rows.append([case.name, *(_median(found) for found in samples)])
    return markdown_table(["tokens/s", *titles.values()], rows)


def _median(samples: list[float]) -> str:
    if not samples:
        return ""
    return f"{number(statistics.median(samples))} ({number(min(samples))} to {number(max(samples))})"
