"""What the writers of a group have contributed to the steps that are not applied yet.

A writer sends any number of contributions to step t and then commits. The step is complete when every writer
has committed and everything its commit announced has arrived; only then is it applied, contributions added in
the order (writer, seq), so the result does not depend on arrival. Updates are known by (epoch, writer, seq):
a repeated one is recognised, whether its step is pending or applied long ago, and a group with a higher epoch
replaces all of this.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memory_store.errors import FencedError, StoreError
from memory_store.grouping import group_by_address
from memory_store.kernels import FloatArray
from memory_store.log_records import GroupState, Replacement
from memory_store.messages import Commit, Sender
from memory_store.optimizers import Contributions


@dataclass(frozen=True)
class Contribution:
    """One part of a writer's gradient to a table.

    Entry e adds weights[e] * vectors[vector_of_entry[e]] to row addresses[e]. `grouped` is the same, grouped by row, if
    that has been made already.
    """

    table: str
    addresses: NDArray[np.uint32]
    vector_of_entry: NDArray[np.int32]
    weights: FloatArray
    vectors: FloatArray
    grouped: Contributions | None = None

    def by_row(self) -> Contributions:
        """See `grouped`."""
        if self.grouped is not None:
            return self.grouped
        groups = group_by_address(self.addresses)
        return Contributions.grouped(groups, self.vector_of_entry, self.weights, self.vectors)


def token_of_entry(offsets: NDArray[np.int32]) -> NDArray[np.int32]:
    """The token of every entry, int32 `[N]`; token t has the entries offsets[t] .. offsets[t + 1] - 1."""
    return np.repeat(np.arange(offsets.size - 1, dtype=np.int32), np.diff(offsets))


@dataclass
class WriterStep:
    """One writer's share of one step."""

    contributions: dict[int, Contribution | Replacement] = field(default_factory=dict)
    commit: Commit | None = None

    @property
    def complete(self) -> bool:
        if self.commit is None:
            return False
        return self.discarded or len(self.contributions) == self.commit.contributions

    @property
    def discarded(self) -> bool:
        return self.commit is not None and self.commit.discard


@dataclass
class WriterGroup:
    """The writers that may change the tables now, and their unapplied steps."""

    session: str = ""
    epoch: int = 0
    writers: int = 0
    pending: dict[int, dict[int, WriterStep]] = field(default_factory=dict)
    last_applied_seq: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, state: GroupState) -> WriterGroup:
        """The group as a log kept it; nothing is pending."""
        return cls(state.session, state.epoch, state.writers, last_applied_seq=dict(state.seqs))

    def state(self) -> GroupState:
        """The group as a log keeps it: without what is pending."""
        seqs = dict(self.last_applied_seq)
        return GroupState(session=self.session, epoch=self.epoch, writers=self.writers, seqs=seqs)

    def check(self, sender: Sender) -> None:
        """Raises FencedError unless `sender` belongs to this group."""
        if sender.epoch != self.epoch or sender.session != self.session:
            raise FencedError(
                f"Writer {sender.writer} of epoch {sender.epoch} is stale: epoch {self.epoch} is in charge. "
                "It must stop; its successor goes on."
            )
        if not 0 <= sender.writer < self.writers:
            raise StoreError(f"Writer {sender.writer} is not in the group of {self.writers} writers.")

    def known(self, sender: Sender, seq: int, step: int) -> bool:
        """Whether this update has been taken before."""
        if seq <= self.last_applied_seq.get(sender.writer, 0):
            return True
        share = self.pending.get(step, {}).get(sender.writer)
        return share is not None and (
            seq in share.contributions or (share.commit is not None and share.commit.seq == seq)
        )

    def contribute(
        self, sender: Sender, seq: int, step: int, contribution: Contribution | Replacement
    ) -> None:
        """Take a contribution that is not known. Raises StoreError if the writer's share is complete."""
        share = self._share(sender, step)
        if share.complete:
            raise StoreError(
                f"Writer {sender.writer} has committed step {step} with {len(share.contributions)} "
                "contributions; one more came."
            )
        share.contributions[seq] = contribution

    def commit(self, commit: Commit) -> None:
        """Take a commit that is not known.

        Raises StoreError if it goes against what has come already: another commit of this writer, more of its
        contributions, or a commit of another writer with other rates, scale or clipping.
        """
        writer, step = commit.sender.writer, commit.step
        share = self._share(commit.sender, step)
        too_many = len(share.contributions) > commit.contributions and not commit.discard
        if share.commit is not None or too_many:
            raise StoreError(
                f"Writer {writer} commits step {step} with {commit.contributions} contributions; "
                f"{len(share.contributions)} have come{' and were committed' if share.commit else ''}."
            )
        for other in self.pending[step].values():
            if other.commit is not None and _settings(other.commit) != _settings(commit):
                raise StoreError(
                    f"The writers of step {step} disagree on its learning rates, scale, clipping or discarding; "
                    "all must send the same."
                )
        share.commit = commit

    def _share(self, sender: Sender, step: int) -> WriterStep:
        return self.pending.setdefault(step, {}).setdefault(sender.writer, WriterStep())

    def complete(self, step: int) -> bool:
        """Whether every writer's share of `step` has arrived in full."""
        shares = self.pending.get(step, {})
        return (
            self.writers > 0
            and len(shares) == self.writers
            and all(share.complete for share in shares.values())
        )

    def settings(self, step: int) -> Commit:
        """A commit of a complete step: in rates, scale and clipping its writers agree."""
        return next(share.commit for share in self.pending[step].values() if share.commit is not None)

    def contributions(self, step: int, table: str) -> Contributions | None:
        """All contributions to `table` in a complete step, grouped by row; None if there are none, or none that count."""
        parts = [
            part
            for _, share in sorted(self.pending[step].items())
            for _, part in sorted(share.contributions.items())
            if isinstance(part, Contribution)
            and part.table == table
            and part.addresses.size
            and not share.discarded
        ]
        if not parts:
            return None
        if len(parts) == 1:
            return parts[0].by_row()
        starts = np.cumsum([0] + [part.vectors.shape[0] for part in parts])
        vector_of_entry = np.concatenate(
            [part.vector_of_entry + np.int32(start) for part, start in zip(parts, starts, strict=False)]
        )
        return Contributions.grouped(
            group_by_address(np.concatenate([part.addresses for part in parts])),
            vector_of_entry,
            np.concatenate([part.weights for part in parts]),
            np.concatenate([part.vectors for part in parts]),
        )

    def replacements(self, step: int) -> tuple[Replacement, ...]:
        """The rows to be replaced after a complete step, in the order of writers."""
        return tuple(
            part
            for _, share in sorted(self.pending[step].items())
            for _, part in sorted(share.contributions.items())
            if isinstance(part, Replacement) and not share.discarded
        )

    def applied(self, step: int) -> None:
        """Forget a step that has been applied, but not that its updates were."""
        for writer, share in self.pending.pop(step).items():
            if share.commit is not None:
                self.last_applied_seq[writer] = max([share.commit.seq, *share.contributions])


def _settings(commit: Commit) -> tuple[bool, bool, float, list[float]]:
    """What the commits of all writers to one step must have in common."""
    return commit.discard, commit.hold, commit.scale, commit.learning_rates.tolist()
