"""What the paper says, as statements that figures decide (verdicts.py says how)."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from itertools import pairwise

from findings.cases import COMPARISONS, FLAT_SUB_KEYS, KEYS, NORMS, SUB_KEYS, rows_named
from findings.figures import KL, PERPLEXITY, USAGE
from findings.later_claims import forgetting, revival, successors
from findings.results import Finding
from findings.verdicts import ALIKE, Claim, are_alike, is_at_least, is_lower, of_all, of_size

FLAT = 0.9  # a rate that keeps this share counts as kept


def claims(finding: Finding) -> list[Claim]:
    """The statements of one finding, with what its runs say to each."""
    return _CLAIMS[finding.finding](finding)


def _depth(finding: Finding) -> list[Claim]:
    dense, deep, memory = (case.name for case in COMPARISONS["depth"].cases)
    seeds = len(COMPARISONS["depth"].seeds)
    perplexity = {case: finding.by_seed(case, PERPLEXITY) for case in (dense, deep, memory)}

    def speed(says: str, rate: str, bound: float) -> Claim:
        return is_at_least(says, finding.by_round(memory, rate), finding.by_round(deep, rate), bound)

    return [
        is_lower(
            "A memory lowers the perplexity of a model of as many layers (17.7 to 15.6).",
            perplexity[memory],
            perplexity[dense],
            seeds,
        ),
        is_lower(
            "With a memory, half of the layers do better than all (15.6 against 16.0).",
            perplexity[memory],
            perplexity[deep],
            seeds,
        ),
        speed(
            "It answers almost twice as fast as the model of twice the layers (taken as 1.5 times).",
            "inference_tokens_per_second",
            1.5,
        ),
        speed("It trains faster than the model of twice the layers.", "training_tokens_per_second", 1),
    ]


def _batch_norm(finding: Finding) -> list[Claim]:
    seeds = len(COMPARISONS["batch_norm"].seeds)

    def figures(figure: str, sub_keys: int, norm: str) -> dict[int, float]:
        return finding.by_seed(f"{rows_named(sub_keys)}, {NORMS[norm]}", figure)

    def usage_without() -> list[float]:
        """By the size of the table, the mean over seeds."""
        found = [figures(USAGE, sub_keys, "none").values() for sub_keys in SUB_KEYS]
        return [statistics.mean(shares) for shares in found if shares]

    largest, smallest = SUB_KEYS[-1], SUB_KEYS[0]
    found = []
    for sub_keys, without, used in ((SUB_KEYS[-2], 0.64, 0.98), (largest, 0.26, 0.80)):
        less = is_lower(
            f"Without batch norm of the queries less of {rows_named(sub_keys)} slots is used ({without:.0%} against "
            f"{used:.0%}).",
            figures(USAGE, sub_keys, "none"),
            figures(USAGE, sub_keys, "batch"),
            1,
            ".1%",
        )
        found.append(of_size(less, figures(USAGE, sub_keys, "batch"), used))
    more_even = is_lower(
        f"With batch norm, use is more even at {rows_named(largest)}: lower KL to uniform (0.95 against 2.06).",
        figures(KL, largest, "batch"),
        figures(KL, largest, "none"),
        1,
        ".2f",
    )
    found.append(of_size(more_even, figures(KL, largest, "batch"), 0.95))
    found.append(
        is_lower(
            f"At {rows_named(largest)} batch norm lowers the perplexity (18.0 against 19.8).",
            figures(PERPLEXITY, largest, "batch"),
            figures(PERPLEXITY, largest, "none"),
            seeds,
        )
    )
    found.append(
        are_alike(
            f"At {rows_named(smallest)} it is not needed: perplexities are alike (within {ALIKE:.0%}; 23.0 and 22.8).",
            [figures(PERPLEXITY, smallest, norm) for norm in NORMS],
            seeds,
        )
    )
    shares = usage_without()
    falls = [all(later < earlier for earlier, later in pairwise(shares))] if len(shares) > 1 else []
    fall = Claim(
        "Without it, the share of slots used falls as K grows (100% to 26%).",
        ", ".join(f"{share:.1%}" for share in shares),
        of_all(falls, 1),
    )
    found.append(of_size(fall, figures(USAGE, smallest, "none"), 1))
    return found


def _flat_keys(finding: Finding) -> list[Claim]:
    def case(sub_keys: int, keys: str) -> str:
        return f"{rows_named(sub_keys)}, {KEYS[keys]}"

    def figures(figure: str, sub_keys: int, keys: str) -> dict[int, float]:
        return finding.by_seed(case(sub_keys, keys), figure)

    def training(sub_keys: int, keys: str) -> dict[int, float]:
        return finding.by_round(case(sub_keys, keys), "training_tokens_per_second")

    smaller, larger = FLAT_SUB_KEYS
    return [
        *(
            of_size(
                of_size(
                    is_lower(
                        f"With flat keys less of {rows_named(sub_keys)} slots is used (10 to 20% against 97 to 100%).",
                        figures(USAGE, sub_keys, "flat"),
                        figures(USAGE, sub_keys, "product"),
                        1,
                        ".1%",
                    ),
                    figures(USAGE, sub_keys, "product"),
                    1,
                ),
                figures(USAGE, sub_keys, "flat"),
                0.2,
            )
            for sub_keys in FLAT_SUB_KEYS
        ),
        *(
            is_lower(
                f"At {rows_named(sub_keys)} product keys reach a lower perplexity (K = 16,384: 23.0 against 23.2).",
                figures(PERPLEXITY, sub_keys, "product"),
                figures(PERPLEXITY, sub_keys, "flat"),
                len(COMPARISONS["flat_keys"].seeds),
            )
            for sub_keys in FLAT_SUB_KEYS
        ),
        is_at_least(
            f"At {rows_named(larger)} product keys train faster (about 36,000 against 35,000 words/s; taken as faster "
            "at all).",
            training(larger, "product"),
            training(larger, "flat"),
            1,
        ),
        is_at_least(
            f"With flat keys a table of {rows_named(smaller)} trains faster than one of {rows_named(larger)} (there "
            "K = 16,384 and 65,536: 35,000 against 28,500 words/s, 1.2 times).",
            training(smaller, "flat"),
            training(larger, "flat"),
            1.2,
        ),
    ]


def _position(finding: Finding) -> list[Claim]:
    cases = [finding.by_seed(case.name, PERPLEXITY) for case in COMPARISONS["position"].cases]
    seeds = sorted(set.intersection(*(set(case) for case in cases)))
    needed = len(COMPARISONS["position"].seeds)
    orders = [sorted(range(len(cases)), key=lambda layer: cases[layer][seed]) for seed in seeds]
    best = "; ".join(f"best {order[0] + 1}, worst {order[-1] + 1}" for order in orders)
    return [
        Claim(
            "The first layer is the worst place (21.5 of 6 layers, the others 19.8 to 20.7).",
            best,
            of_all([order[-1] == 0 for order in orders], needed),
        ),
        Claim(
            "An intermediate layer is the best place (the fifth of 6: 19.8).",
            best,
            of_all([order[0] not in (0, len(cases) - 1) for order in orders], needed),
        ),
    ]


def _heads_k(finding: Finding) -> list[Claim]:
    cases = [finding.by_seed(case.name, PERPLEXITY) for case in COMPARISONS["heads_k"].cases]
    says = f"At equal heads x k, perplexities are alike (all about 20.5; taken as within {ALIKE:.0%})."
    return [are_alike(says, cases, len(COMPARISONS["heads_k"].seeds))]


def _scaling(finding: Finding) -> list[Claim]:
    smallest, *_, largest = (case.name for case in COMPARISONS["scaling"].cases)
    growth = SUB_KEYS[-1] // SUB_KEYS[0]

    def rate(says: str, name: str, bound: float) -> Claim:
        return is_at_least(says, finding.by_round(largest, name), finding.by_round(smallest, name), bound)

    return [
        rate(
            f"Training is as fast with {largest} as with {smallest} (taken as {FLAT:.0%} of the speed).",
            "training_tokens_per_second",
            FLAT,
        ),
        rate(
            f"The cost of selection grows with the root of K at most: {growth} times, when K is {growth**2} times as large.",
            "selection_tokens_per_second",
            1 / growth,
        ),
        is_lower(
            f"More slots lower the perplexity ({largest} against {smallest}; 18.0 against 23.0).",
            finding.by_seed(largest, PERPLEXITY),
            finding.by_seed(smallest, PERPLEXITY),
            len(COMPARISONS["scaling"].seeds),
        ),
    ]


_CLAIMS: dict[str, Callable[[Finding], list[Claim]]] = {
    "depth": _depth,
    "batch_norm": _batch_norm,
    "flat_keys": _flat_keys,
    "position": _position,
    "heads_k": _heads_k,
    "scaling": _scaling,
    "successors": successors,
    "revival": revival,
    "forgetting": forgetting,
}
