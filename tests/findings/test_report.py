"""The page says what the files say: its tables against brute force, its verdicts against numbers turned round."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.machine import this_machine
from findings.cases import COMPARISONS, OWN_TABLES
from findings.claims import claims
from findings.report import PAGE, page_of, recorded_findings, write_report
from findings.results import RESULTS, Finding, Run, load_finding
from findings.verdicts import Verdict
from memory_store.errors import UsageError

ROOT = Path(__file__).parents[2]
MACHINE = this_machine()


def made_up(name: str, cases: Mapping[str, list[dict[str, float]]], kind: str = "training") -> Finding:
    """A finding whose cases have these figures, one a seed (or one a round)."""
    by_name = {case.name: case for case in COMPARISONS[name].cases}
    runs = [
        Run.model_validate(
            {
                "kind": kind,
                "case": case,
                "job": by_name[case].job(number).model_dump(),
                "commit": "c",
                "seed": number,
                "round": number,
                "machine": MACHINE.model_dump(),
                "figures": figures,
            }
        )
        for case, found in cases.items()
        for number, figures in enumerate(found)
    ]
    return Finding(finding=name, runs=tuple(runs))


def perplexities(name: str, **cases: list[float]) -> Finding:
    """Cases in the order of the finding, named at will."""
    names = [case.name for case in COMPARISONS[name].cases]
    return made_up(
        name,
        {
            case: [{"test_perplexity": perplexity} for perplexity in found]
            for case, found in zip(names, cases.values(), strict=True)
        },
    )


def verdicts(finding: Finding) -> list[Verdict]:
    return [claim.verdict for claim in claims(finding)]


def test_tables_have_the_mean_the_lowest_and_the_highest() -> None:
    measured = {
        "dense": [310.0, 330.5, 301.3],
        "deep": [300.0, 300.0, 300.0],
        "memory": [250.0, 281.0, 279.0],
    }
    finding = perplexities("depth", **measured)
    rows = re.findall(r"^\| (\S.*?) \| 3 \| (.*?) \|", page_of([finding], "results"), re.MULTILINE)
    expected = []
    for case, found in zip(COMPARISONS["depth"].cases, measured.values(), strict=True):
        total = 0.0
        for perplexity in found:
            total += perplexity
        cell = f"{total / 3:.1f}"
        if len(set(found)) > 1:
            cell += f" ({sorted(found)[0]:.1f} to {sorted(found)[-1]:.1f})"
        expected.append((case.name, cell))
    assert rows == expected


def test_verdicts_turn_with_the_numbers() -> None:
    good = verdicts(perplexities("depth", dense=[3, 3, 3], deep=[2, 2, 2], memory=[1, 1.5, 1]))
    bad = verdicts(perplexities("depth", dense=[1, 1, 1], deep=[0.5, 1, 1], memory=[2, 2, 2]))
    mixed = verdicts(perplexities("depth", dense=[3, 3, 3], deep=[2, 2, 2], memory=[1, 2.5, 1]))
    assert good == [Verdict.REPRODUCES, Verdict.REPRODUCES, Verdict.MISSING, Verdict.MISSING]
    assert bad == [Verdict.DIFFERS, Verdict.DIFFERS, Verdict.MISSING, Verdict.MISSING]
    assert mixed == [Verdict.REPRODUCES, Verdict.UNDECIDED, Verdict.MISSING, Verdict.MISSING]


@pytest.mark.parametrize(("memory", "expected"), [(1600, Verdict.REPRODUCES), (1400, Verdict.DIFFERS)])
def test_speeds_are_compared_round_by_round(memory: float, expected: Verdict) -> None:
    rate = "inference_tokens_per_second"
    deep, with_memory = (case.name for case in COMPARISONS["depth"].cases[1:])
    # In the last round the machine was ten times as slow, for both.
    rounds = {deep: [{rate: 1000.0}, {rate: 100.0}], with_memory: [{rate: memory}, {rate: memory / 10}]}
    found = claims(made_up("depth", rounds, kind="speed"))
    assert found[2].verdict is expected
    assert f"ratio {memory / 1000:.2f}" in found[2].measured


def test_the_places_of_a_memory_are_ordered() -> None:
    as_published = verdicts(perplexities("position", a=[4] * 3, b=[3] * 3, c=[1] * 3, d=[2] * 3))
    last_is_best = verdicts(perplexities("position", a=[4] * 3, b=[3] * 3, c=[2] * 3, d=[1] * 3))
    first_is_best = verdicts(perplexities("position", a=[1] * 3, b=[3, 2, 2], c=[2, 3, 3], d=[2] * 3))
    assert as_published == [Verdict.REPRODUCES, Verdict.REPRODUCES]
    assert last_is_best == [Verdict.REPRODUCES, Verdict.DIFFERS]
    assert first_is_best == [Verdict.DIFFERS, Verdict.DIFFERS]


def test_perplexities_are_alike_within_a_bound() -> None:
    close: list[list[float]] = [[100, 101, 99], [100, 102, 100], [99, 101, 101]]
    for last, expected in (([100.0, 101.0, 100.0], Verdict.REPRODUCES), ([110.0] * 3, Verdict.DIFFERS)):
        finding = perplexities("heads_k", a=close[0], b=close[1], c=close[2], d=last)
        assert verdicts(finding) == [expected]


def test_too_few_seeds_decide_nothing() -> None:
    found = verdicts(perplexities("depth", dense=[3, 3], deep=[2, 2], memory=[1, 1]))
    assert found[:2] == [Verdict.TOO_FEW] * 2


def test_what_was_not_measured_is_said() -> None:
    for name in COMPARISONS:
        assert set(verdicts(Finding(finding=name))) == {Verdict.MISSING}, name


def test_usage_with_and_without_batch_norm() -> None:
    def finding(shares: list[float]) -> Finding:
        cases = [case.name for case in COMPARISONS["batch_norm"].cases]
        return made_up(
            "batch_norm",
            {case: [{"memory_usage": share}] for case, share in zip(cases, shares, strict=True)},
        )

    published = verdicts(finding([1, 0.999, 1, 0.99, 0.98, 0.64, 0.8, 0.26]))
    collapsed = verdicts(finding([0.6, 0.3, 0.4, 0.2, 0.1, 0.02, 0.05, 0.01]))
    turned = verdicts(finding([0.9, 0.1, 0.9, 0.5, 0.5, 0.9, 0.3, 1]))
    assert [published[0], published[1], published[-1]] == [Verdict.REPRODUCES] * 3
    assert [collapsed[0], collapsed[1], collapsed[-1]] == [Verdict.DIRECTION] * 3
    assert [turned[0], turned[1], turned[-1]] == [Verdict.DIFFERS] * 3


def test_usage_and_perplexity_with_flat_keys() -> None:
    def finding(figures: list[tuple[float, float]]) -> Finding:
        cases = [case.name for case in COMPARISONS["flat_keys"].cases]
        return made_up(
            "flat_keys",
            {
                case: [{"memory_usage": usage, "test_perplexity": perplexity}] * 3
                for case, (usage, perplexity) in zip(cases, figures, strict=True)
            },
        )

    published = verdicts(finding([(1, 23.0), (0.2, 23.2), (0.99, 21.9), (0.1, 22.6)]))
    turned = verdicts(finding([(0.2, 24), (0.3, 23), (0.1, 23), (0.4, 22)]))
    collapsed = verdicts(finding([(0.4, 23.0), (0.2, 23.2), (0.3, 21.9), (0.1, 22.6)]))
    assert published[:4] == [Verdict.REPRODUCES] * 4
    assert collapsed[:4] == [Verdict.DIRECTION] * 2 + [Verdict.REPRODUCES] * 2
    assert turned[:4] == [Verdict.DIFFERS] * 4


def test_speeds_with_flat_keys() -> None:
    cases = [case.name for case in COMPARISONS["flat_keys"].cases]

    def found(words_per_second: list[float]) -> list[Verdict]:
        rates = [[{"training_tokens_per_second": rate}] for rate in words_per_second]
        return verdicts(made_up("flat_keys", dict(zip(cases, rates, strict=True)), kind="speed"))[4:]

    assert found([36_000, 35_000, 36_000, 28_500]) == [Verdict.REPRODUCES] * 2
    assert found([36_000, 28_500, 28_000, 28_500]) == [Verdict.DIFFERS] * 2


def test_successors_are_compared_with_the_plain_layer() -> None:
    names = [case.name for case in COMPARISONS["successors"].cases]

    def found(perplexity: float, own_tables: float) -> list[Verdict]:
        figures = dict.fromkeys(names, perplexity) | {names[0]: 100.0, OWN_TABLES: own_tables}
        return verdicts(
            made_up("successors", {name: [{"test_perplexity": figures[name]}] * 3 for name in names})
        )

    assert found(99, 100) == [Verdict.REPRODUCES] * 8
    assert found(101, 110) == [Verdict.DIFFERS] * 8


def test_revival_is_compared_within_each_norm() -> None:
    def found(figures: list[tuple[float, float]]) -> list[Verdict]:
        cases = [case.name for case in COMPARISONS["revival"].cases]
        return verdicts(
            made_up(
                "revival",
                {
                    case: [{"memory_usage": usage, "test_perplexity": perplexity}] * 3
                    for case, (usage, perplexity) in zip(cases, figures, strict=True)
                },
            )
        )

    helps, harms = Verdict.REPRODUCES, Verdict.DIFFERS
    assert found([(0.2, 9), (0.3, 8), (0.1, 9), (0.2, 8)]) == [helps] * 4
    assert found([(0.2, 9), (0.3, 8), (0.4, 7), (0.2, 8)]) == [helps, helps, harms, harms]


def test_what_is_learned_and_forgotten_is_told_in_nats() -> None:
    cases = [case.name for case in COMPARISONS["forgetting"].cases]
    perplexities_of_cases = {  # old before and after, new before and after
        cases[0]: (100.0, 120.0, 200.0, 100.0),
        cases[1]: (100.0, 105.0, 200.0, 150.0),
        cases[2]: (100.0, 130.0, 200.0, 201.0),
    }
    figures = [f"{text}_perplexity_{when}" for text in ("old", "new") for when in ("before", "after")]
    finding = made_up(
        "forgetting",
        {case: [dict(zip(figures, found, strict=True))] * 3 for case, found in perplexities_of_cases.items()},
        kind="finetuning",
    )
    learned, less, less_for_it, *others = claims(finding)
    assert {claim.verdict for claim in (learned, less, less_for_it)} == {Verdict.REPRODUCES}
    assert [claim.verdict for claim in others] == [Verdict.DIFFERS] * 3
    # log(200 / 150), log(1.05), log(1.2) and the quotients, to three places
    assert learned.measured == "; ".join(["0.288 nats"] * 3)
    assert less.measured == "; ".join(["0.049 against 0.182"] * 3)
    assert less_for_it.measured == "; ".join(["0.170 against 0.263"] * 3)
    assert "| old text, before | after | new text, before | after |" in page_of([finding], "results")


def test_no_results_are_a_mistake_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="python -m findings run all"):
        write_report(tmp_path, tmp_path / "results.md")


def test_the_page_and_its_pictures_are_written(tmp_path: Path) -> None:
    results = tmp_path / "results"
    perplexities("depth", dense=[3, 3], deep=[2, 2], memory=[1, 1]).save(results)
    write_report(results, tmp_path / "results.md")
    page = (tmp_path / "results.md").read_text()
    assert "not measured" in page  # the other findings
    assert [link for link in re.findall(r"!\[.*?\]\((\S+)\)", page) if not (tmp_path / link).is_file()] == []


def test_the_recorded_page_is_what_the_recorded_runs_give() -> None:
    findings = recorded_findings(ROOT / RESULTS)
    assert page_of(findings, RESULTS.name) == (ROOT / PAGE).read_text(), "run `python -m findings report`"
    pictures = [ROOT / RESULTS / f"{finding.finding}.png" for finding in findings if finding.runs]
    assert [picture for picture in pictures if not picture.is_file()] == []


def test_recorded_jobs_are_those_of_their_cases() -> None:
    for name, comparison in COMPARISONS.items():
        cases = {case.name: case for case in comparison.cases}
        for run in load_finding(ROOT / RESULTS, name).runs:
            assert run.job == cases[run.case].job(run.seed), f"{name}: {run.case}, seed {run.seed}"
