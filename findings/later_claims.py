"""What later papers say, as statements that figures decide (verdicts.py says how)."""

from __future__ import annotations

import math

from findings.cases import COMPARISONS, NORMS, OWN_TABLES, SHARED_TABLE, revival_case
from findings.figures import NEW_AFTER, NEW_BEFORE, OLD_AFTER, OLD_BEFORE, PERPLEXITY, USAGE
from findings.results import Finding
from findings.verdicts import ALIKE, Claim, are_alike, is_lower, of_all

_SUCCESSORS = (
    ("gate", "A gate lowers the perplexity of a memory (Memory+)."),
    (
        "qk-norm",
        "Normalised queries and keys do in place of batch norm (Memory+; taken as a lower perplexity).",
    ),
    ("experts", "Experts of one neuron, half as many, are better than values (PEER)."),
    ("scores as weights", "Scores as weights are better than their softmax (UltraMem)."),
    ("half-width values", "Values of half the width with a matrix are better (UltraMem)."),
    (
        "four keys a row",
        "Four keys a row, each with a matrix, are better, with a quarter of the rows (UltraMem).",
    ),
    ("falling rate", "A learning rate of the values that falls to a tenth is better (UltraMem)."),
)


def successors(finding: Finding) -> list[Claim]:
    comparison = COMPARISONS["successors"]
    seeds = len(comparison.seeds)
    plain = finding.by_seed(comparison.cases[0].name, PERPLEXITY)
    found = [is_lower(says, finding.by_seed(case, PERPLEXITY), plain, seeds) for case, says in _SUCCESSORS]
    tables = [finding.by_seed(case, PERPLEXITY) for case in (SHARED_TABLE, OWN_TABLES)]
    says = f"Two layers that share a table do as well as with a table each (Memory+; within {ALIKE:.0%})."
    return [*found, are_alike(says, tables, seeds)]


def revival(finding: Finding) -> list[Claim]:
    seeds = len(COMPARISONS["revival"].seeds)
    found = []
    for norm, named in NORMS.items():
        without, revived = (revival_case(norm, revive) for revive in (False, True))
        usage, perplexity = (
            {case: finding.by_seed(case, figure) for case in (without, revived)}
            for figure in (USAGE, PERPLEXITY)
        )
        found += [
            is_lower(
                f"With {named}, revival brings slots into use.", usage[without], usage[revived], 1, ".1%"
            ),
            is_lower(
                f"With {named}, revival lowers the perplexity.",
                perplexity[revived],
                perplexity[without],
                seeds,
            ),
        ]
    return found


def forgetting(finding: Finding) -> list[Claim]:
    """In nats a token: the rise of the loss on the old text, and the fall of that on the new one."""
    comparison = COMPARISONS["forgetting"]
    seeds, (everything, *sparse) = len(comparison.seeds), [case.name for case in comparison.cases]

    def change(case: str, after: str, before: str) -> dict[int, float]:
        then, first = finding.by_seed(case, after), finding.by_seed(case, before)
        return {seed: math.log(then[seed] / first[seed]) for seed in then}

    def forgotten(case: str) -> dict[int, float]:
        return change(case, OLD_AFTER, OLD_BEFORE)

    def learned(case: str) -> dict[int, float]:
        return change(case, NEW_BEFORE, NEW_AFTER)

    def for_a_nat_learned(case: str) -> dict[int, float]:
        gained = learned(case)
        return {
            seed: loss / gained[seed] if gained[seed] > 0 else math.inf
            for seed, loss in forgotten(case).items()
        }

    found = []
    for case in sparse:
        gained = learned(case)
        found += [
            Claim(
                f"With {case}, the new text is learned.",
                "; ".join(f"{gain:.3f} nats" for gain in gained.values()),
                of_all([gain > 0 for gain in gained.values()], seeds),
            ),
            is_lower(
                f"With {case}, less of the old text is forgotten than when everything learns (nats).",
                forgotten(case),
                forgotten(everything),
                seeds,
                ".3f",
            ),
            is_lower(
                f"With {case}, less is forgotten for each nat learned.",
                for_a_nat_learned(case),
                for_a_nat_learned(everything),
                seeds,
                ".3f",
            ),
        ]
    return found
