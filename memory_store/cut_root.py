"""The folder under which a shard's cuts lie: it touches no other, whoever asks and wherever links lead."""

from __future__ import annotations

from pathlib import Path

from memory_store.cuts import is_cut_folder
from memory_store.errors import CutError

_SHOWN = 200


class CutRoot:
    """The cuts in `path`, each in a folder of its own as `cuts.cut_folder` names it; with None they may be anywhere, which
    is for a shard that nobody asks over a network."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def folder(self, asked: str) -> Path:
        """The folder that a request names, with no link left in its path. Raises CutError if it is none of these."""
        if self._path is None:
            return Path(asked)
        try:
            root, found = self._path.resolve(), Path(asked).resolve()
        except (OSError, RuntimeError, ValueError):  # a loop of links, or no path at all
            root = found = self._path
        if found.parent != root or not is_cut_folder(found):
            raise CutError(
                f"{asked[:_SHOWN]!r} is no cut of this shard; its cuts are the folders step-... in {root}."
            )
        return found
