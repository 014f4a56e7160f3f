"""A shard whose tables are an image of rows that lie elsewhere, as in the memory of a GPU.

Lookups and steps are made where the rows lie. What concerns files and statistics goes through the image, which is brought up
to date for it: so first values, cuts and requests are those of any other shard.
"""

from __future__ import annotations

from typing import Protocol


class Original(Protocol):
    """The rows of which a shard has the image. Called by the shard's host, one call at a time, while no step is made."""

    def into_image(self) -> int:
        """Copy all rows and their state into the image; returns the version that they are at."""
        ...

    def from_image(self) -> None:
        """Copy them out of the image, which has been replaced."""
        ...

    def touched(self, table: str, since: int) -> int:
        """How many rows of a table were updated after version `since`."""
        ...
