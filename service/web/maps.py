"""The access map of a run, as the page shows it: of the training's last steps, or of the held-out text at its end."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.jobs.errors import NoSuchJobError
from workers.access_map_file import load_access_map
from workers.run_folder import RunFolder
from workers.training_map import load_map


@dataclass(frozen=True)
class DrawnMap:
    """`pixels` are float32, little-endian, line by line, first sub-key down; `figures` say what they show; `tag` changes
    with either."""

    pixels: bytes
    figures: dict[str, int]
    tag: str


def read_map(run: RunFolder, of: str, side: int) -> DrawnMap:
    """The map of a run, coarsened to at most `side` x `side`. Raises NoSuchJobError if there is none (yet)."""
    figures: dict[str, int] = {}
    if of == "training":
        recent = load_map(run.training_map_path)
        if recent is None:
            raise NoSuchJobError("There is no map of the training yet: it comes with its first steps.")
        pixels = recent.counts.astype(np.float64)
        figures = {"Since": recent.since, "Step": recent.step, "Sub-Keys": recent.sub_keys}
    else:
        if not run.access_map_path.is_file():
            raise NoSuchJobError(
                "There is no map of the held-out text yet: it comes with the end of the job."
            )
        pixels = load_access_map(run.access_map_path)
        memory = run.load_job().memory
        figures = {"Sub-Keys": memory.sub_keys if memory is not None else pixels.shape[0]}
    drawn = coarsened(pixels, side)
    content = drawn.astype("<f4").tobytes()
    figures["Side"] = drawn.shape[0]
    told = repr(sorted(figures.items())).encode()
    return DrawnMap(content, figures, f'"{hashlib.sha256(content + told).hexdigest()[:32]}"')


def coarsened(pixels: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """float64 `[P, P]` -> `[min(P, side), min(P, side)]`: pixel (i, j) is added to (i * side // P, j * side // P)."""
    have = pixels.shape[0]
    if have <= side:
        return pixels
    starts = -(-np.arange(side) * have // side)  # the first i with i * side // have == its place
    return np.add.reduceat(np.add.reduceat(pixels, starts, axis=0), starts, axis=1)
