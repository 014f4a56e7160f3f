"""docs/results.md, made of the findings in docs/results/*.json: `python -m benchmarks.results_page`.

Nothing in it is typed by hand but what each finding asks. A figure of several seeds is their mean, with the standard
deviation between them.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean, stdev

from benchmarks.findings import RESULTS, Finding, load_finding

PAGE = RESULTS.with_suffix(".md")

_HEAD = """# Results

Made by `python -m benchmarks.results_page` from the files in [docs/results](results), which
`python -m benchmarks.findings FINDING` writes; each says the settings, commit and machine of every run. These are small
models and short runs on the State of the Union addresses: differences of one or two per cent are within the noise of
the seed.
"""

_QUESTIONS = {
    "variants": "Options of the memory, each at equal steps: the quickstart model with one thing changed.",
    "revival": "Dead sub-keys re-seeded every 25 steps, without and with query batch norm.",
    "forgetting": "A model of the older addresses goes on with the newest: perplexity on the test text of both.",
}

_TITLES = {
    "test_perplexity": "test perplexity",
    "memory_usage": "usage",
    "kl_to_uniform": "KL",
    "tokens_per_second": "tokens/s",
    "table_rows": "rows",
    "dense_parameters": "dense parameters",
    "old_perplexity": "old text",
    "new_perplexity": "new text",
}


def page(findings: Iterable[Finding]) -> str:
    """The page as text."""
    return "\n".join([_HEAD, *map(_section, findings)])


def _section(finding: Finding) -> str:
    names = list(dict.fromkeys(run.name for run in finding.runs))
    columns = list(dict.fromkeys(column for run in finding.runs for column in run.figures))
    lines = [
        f"| | {' | '.join(_TITLES.get(column, column) for column in columns)} |",
        "|" + "---|" * (len(columns) + 1),
    ]
    for name in names:
        runs = [run for run in finding.runs if run.name == name]
        cells = [_cell(column, [run.figures[column] for run in runs]) for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    first = finding.runs[0]
    seeds = sorted({run.seed for run in finding.runs})
    common = [item for item in first.job.items() if all(item in run.job.items() for run in finding.runs)]
    settings = ", ".join(f"`{key}={value}`" for key, value in common)
    where = f"{first.machine.cpu}, {first.machine.cores} cores; commit `{first.commit[:10]}`; seeds {seeds}; {settings}."
    question = _QUESTIONS.get(finding.finding, "")
    return f"## {finding.finding}\n\n{question}\n\n" + "\n".join(lines) + f"\n\n{where}\n"


def _cell(column: str, values: list[float]) -> str:
    if column == "memory_usage":
        text = f"{100 * fmean(values):.1f} %"
    elif column in ("tokens_per_second", "table_rows", "dense_parameters"):
        text = f"{fmean(values):,.0f}"
    else:
        text = f"{fmean(values):.2f}" if fmean(values) < 1000 else f"{fmean(values):,.0f}"
        if len(values) > 1:
            text += f" ± {stdev(values):.2f}"
    return text


def main() -> None:
    findings = [load_finding(path) for path in sorted(RESULTS.glob("*.json"))]
    PAGE.write_text(page(findings), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
