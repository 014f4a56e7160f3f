"""Pooled lookups whose backward pass is still to come: it sends only the gradient, their entries stay at the shard."""

from __future__ import annotations

from memory_store.errors import StoreError
from memory_store.messages import Pool

KEPT_LOOKUPS_MAX = 4096


class KeptLookups:
    """The kept lookups of all writers, of steps that are not applied yet."""

    def __init__(self) -> None:
        self.kept_in_all = 0  # since the start
        self._kept: dict[tuple[int, int], Pool] = {}

    def keep(self, request: Pool) -> None:
        """Raises StoreError if there are too many already."""
        if len(self._kept) >= KEPT_LOOKUPS_MAX:
            raise StoreError(
                f"{KEPT_LOOKUPS_MAX} lookups wait for their backward pass; "
                "run it, or look up without keeping (torch.no_grad)."
            )
        self._kept[request.sender.writer, request.lookup] = request
        self.kept_in_all += 1

    def of(self, writer: int, lookup: int) -> Pool | None:
        """The lookup with this number of a writer, if it is kept."""
        return self._kept.get((writer, lookup))

    def forget_up_to(self, version: int) -> None:
        """The step of `version` is over: so are the lookups for it."""
        self._kept = {key: kept for key, kept in self._kept.items() if kept.version > version}

    def clear(self) -> None:
        self._kept.clear()
