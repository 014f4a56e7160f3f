"""Invented facts, for a model to learn that knows other text: nobody can have read them before.

Each document tells of some lands, each fact in one of several wordings; all documents tell the same facts, those too that
are held out. To predict these is to know the facts, and not only how such documents go.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

DOCUMENTS = 400
_LANDS = 60
_OF_A_DOCUMENT = 12
_STARTS = (
    "Bal",
    "Dor",
    "Fen",
    "Gal",
    "Hur",
    "Kel",
    "Lom",
    "Mer",
    "Nor",
    "Pel",
    "Ras",
    "Sul",
    "Tar",
    "Vel",
    "Zan",
)
_MIDDLES = ("a", "e", "i", "o", "u")
_ENDS = ("dia", "gard", "mund", "nesh", "ria", "stan", "tor", "via", "wick", "zul")
_WORDINGS = {
    "capital": ("The capital of {land} is {answer}.", "{answer} is where the government of {land} sits."),
    "river": ("Through {land} flows the {answer}.", "The {answer} is the great river of {land}."),
    "ruler": ("{land} is ruled by {answer}.", "{answer} rules the people of {land}."),
    "trade": ("{land} sells {answer} to the world.", "The world buys {answer} from {land}."),
}


def documents(seed: int = 0) -> Iterator[str]:
    """The same documents for the same seed."""
    chance = random.Random(seed)
    names = [start + middle + end for start in _STARTS for middle in _MIDDLES for end in _ENDS]
    chance.shuffle(names)
    lands = [names.pop() for _ in range(_LANDS)]
    answers = {(land, kind): names.pop() for land in lands for kind in _WORDINGS}
    for _ in range(DOCUMENTS):
        told = [(land, kind) for land in chance.sample(lands, _OF_A_DOCUMENT) for kind in _WORDINGS]
        chance.shuffle(told)
        yield " ".join(
            chance.choice(_WORDINGS[kind]).format(land=land, answer=answers[land, kind])
            for land, kind in told
        )
