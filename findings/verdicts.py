"""What figures say to a statement: whether it holds, in which direction, or that it can't be told.

A statement about cases is looked at seed by seed: it reproduces if it holds for every seed, it does not if it holds for
none, and seeds that disagree leave it undecided. So do fewer seeds than the finding plans, where it is about perplexities,
which differ between seeds by as much as between cases; how much of a table is used differs far more, and one seed decides.
That can be compared with the paper's figures too: where it is far from them, a statement reproduces in its direction alone.
Rates are compared round by round, by the median ratio.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

ALIKE = 0.03  # perplexities this close, as a share, count as equal
NEAR = 2  # a figure of the table's use within this factor of the paper's counts as of its size


class Verdict(StrEnum):
    """What the figures say to a statement."""

    REPRODUCES = "reproduces"
    DIRECTION = "reproduces in direction only"
    DIFFERS = "does not reproduce"
    UNDECIDED = "undecided: seeds disagree"
    TOO_FEW = "undecided: too few seeds"
    MISSING = "not measured"


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, what was measured for it, and the verdict."""

    says: str
    measured: str
    verdict: Verdict


def is_lower(
    says: str, lower: Mapping[int, float], higher: Mapping[int, float], seeds_needed: int, form: str = ".1f"
) -> Claim:
    """That a figure is lower in one case than in another, seed by seed."""
    seeds = sorted(lower.keys() & higher.keys())
    pairs = "; ".join(f"{lower[seed]:{form}} against {higher[seed]:{form}}" for seed in seeds)
    return Claim(says, pairs, of_all([lower[seed] < higher[seed] for seed in seeds], seeds_needed))


def of_all(held: list[bool], needed: int) -> Verdict:
    """The verdict on a statement that held, or not, for each of some seeds, of which at least `needed` must be there."""
    if not held:
        return Verdict.MISSING
    if len(held) < needed:
        return Verdict.TOO_FEW
    if all(held):
        return Verdict.REPRODUCES
    return Verdict.UNDECIDED if any(held) else Verdict.DIFFERS


def of_size(claim: Claim, figures: Mapping[int, float], published: float) -> Claim:
    """The same, in direction only if the mean over seeds of `figures` is far from what the paper has."""
    if claim.verdict is not Verdict.REPRODUCES:
        return claim
    factor = statistics.mean(figures.values()) / published
    return claim if 1 / NEAR <= factor <= NEAR else replace(claim, verdict=Verdict.DIRECTION)


def is_at_least(says: str, upper: Mapping[int, float], lower: Mapping[int, float], bound: float) -> Claim:
    """That a rate is at least `bound` times another."""
    ratios = [upper[sampled] / lower[sampled] for sampled in upper.keys() & lower.keys()]
    if not ratios:
        return Claim(says, "", Verdict.MISSING)
    ratio = statistics.median(ratios)
    return Claim(says, f"ratio {ratio:.2f}, must be at least {bound:.2g}", of_all([ratio >= bound], 1))


def are_alike(says: str, cases: list[dict[int, float]], seeds_needed: int) -> Claim:
    """That the means over seeds of all cases lie within `ALIKE` of their mean."""
    if not all(cases):
        return Claim(says, "", Verdict.MISSING)
    means = [statistics.mean(case.values()) for case in cases]
    spread = (max(means) - min(means)) / statistics.mean(means)
    return Claim(
        says, f"means are {spread:.1%} apart", of_all([spread <= ALIKE] * min(map(len, cases)), seeds_needed)
    )
