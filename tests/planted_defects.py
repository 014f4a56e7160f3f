"""Defects that are planted on purpose, each to be caught by the test that is named with it.

`PKM_PLANTED_DEFECT=NAME pytest ...` plants one (tests/conftest.py); the product itself knows nothing of them.
tests/test_planted_defects.py sees that every one is caught.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from memory_store import durable_files, log_segment, log_storage, messages, request_checks, shard
from memory_store.link import Link
from memory_store.shard import ShardCore
from memory_store.step_log import StepLog
from memory_store.steps import WriterGroup


@dataclass(frozen=True)
class Defect:
    """How to plant it, and the tests of which at least one must fail then."""

    plant: Callable[[], None]
    caught_by: str


def _patch(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    setattr(owner, name, make(getattr(owner, name)))


def _acknowledge_before_sync() -> None:
    _patch(shard, "acknowledges", lambda _: lambda request, reply: False)


def _forget_the_folders_sync() -> None:
    for module in (durable_files, log_storage):
        _patch(module, "sync_folder", lambda _: lambda folder: None)


def _deduplication_outside_the_record() -> None:
    def make(original: Any) -> Any:
        def group_state(self: ShardCore) -> Any:
            return original(self).model_copy(update={"seqs": {}})

        return group_state

    _patch(ShardCore, "group_state", make)
    _patch(ShardCore, "_record", lambda original: lambda self, record: original(self, _without_seqs(record)))


def _without_seqs(record: Any) -> Any:
    return replace(record, seqs={}) if hasattr(record, "seqs") else record


def _no_deduplication() -> None:
    _patch(WriterGroup, "known", lambda _: lambda self, sender, seq, step: False)


def _no_epoch_check() -> None:
    _patch(WriterGroup, "check", lambda _: lambda self, sender: None)


def _skipped_checksum() -> None:
    class NoChecksum:
        crc32 = staticmethod(
            lambda data, value=0: zlib.crc32(b"", value) if len(data) > 60 else zlib.crc32(data, value)
        )

    _patch(log_segment, "zlib", lambda _: NoChecksum)


def _no_chain_of_checksums() -> None:
    _patch(log_segment, "_header_checksum", lambda original: lambda header, chain: original(header, 0))


def _no_check_for_a_successor() -> None:
    _patch(StepLog, "_check_in_charge", lambda _: lambda self: None)


def _damage_cut_off_silently() -> None:
    def make(original: Any) -> Any:
        def read_records(name: str, data: memoryview, until: int | None = None) -> Any:
            try:
                yield from original(name, data, until)
            except log_segment.LogError:
                return

        return read_records

    from memory_store import step_log

    _patch(step_log, "read_records", make)


def _step_without_all_writers() -> None:
    def make(original: Any) -> Any:
        def complete(self: WriterGroup, step: int) -> bool:
            return self.writers > 0 and any(share.complete for share in self.pending.get(step, {}).values())

        return complete

    _patch(WriterGroup, "complete", make)


def _gradient_shifted_by_a_missing_row() -> None:
    def make(original: Any) -> Any:
        def contribute(self: ShardCore, request: Any) -> Any:
            if isinstance(request, messages.RowGradient) and request.addresses.size > 1:
                request = replace(request, gradients=np.roll(request.gradients, 1, axis=0))
            return original(self, request)

        return contribute

    _patch(ShardCore, "_contribute", make)


def _retry_under_a_new_seq() -> None:
    def make(original: Any) -> Any:
        def connected_to(self: Link, info: messages.ShardInfo) -> Any:
            actions = original(self, info)
            return [
                replace(action, request=replace(action.request, seq=action.request.seq + 1000))
                if isinstance(getattr(action, "request", None), messages.RowGradient | messages.EntryGradient)
                else action
                for action in actions
            ]

        return connected_to

    _patch(Link, "connected_to", make)


def _kept_requests_forgotten() -> None:
    def make(original: Any) -> Any:
        def connected_to(self: Link, info: messages.ShardInfo) -> Any:
            self._kept.clear()
            return original(self, info)

        return connected_to

    _patch(Link, "connected_to", make)


def _late_copies_replace_the_tables_again() -> None:
    def make(original: Any) -> Any:
        def replaced_before(self: ShardCore, request: Any) -> bool:
            self.check_sender(request.sender)
            return False

        return replaced_before

    _patch(ShardCore, "replaced_before", make)


def _no_check_for_what_is_not_finite() -> None:
    _patch(request_checks, "check_finite", lambda _: lambda part, numbers: None)
    _patch(shard, "check_finite", lambda _: lambda part, numbers: None)


def _lookup_of_any_version() -> None:
    _patch(ShardCore, "_version_reached", lambda _: lambda self, version: True)


_SIMULATION = "tests/simulation/test_simulation.py::test_runs_under_faults_end_as_without"
_SIMULATION_0, _SIMULATION_100 = f"{_SIMULATION}[0]", f"{_SIMULATION}[100]"
_LOG = "tests/memory_store/test_step_log.py"

DEFECTS: dict[str, Defect] = {
    "acknowledge before sync": Defect(_acknowledge_before_sync, _SIMULATION_0),
    "forget the folder's sync": Defect(
        _forget_the_folders_sync,
        "tests/memory_store/test_durable_files.py",
    ),
    "deduplication outside the record": Defect(_deduplication_outside_the_record, _SIMULATION_0),
    "no deduplication": Defect(_no_deduplication, _SIMULATION_0),
    "no epoch check": Defect(_no_epoch_check, _SIMULATION_0),
    "skipped checksum": Defect(
        _skipped_checksum, f"{_LOG}::test_every_flipped_bit_is_found_and_its_place_is_named"
    ),
    "no chain of checksums": Defect(_no_chain_of_checksums, f"{_LOG}::test_records_that_are_moved_are_found"),
    "no check for a successor": Defect(_no_check_for_a_successor, _SIMULATION_0),
    "damage cut off silently": Defect(
        _damage_cut_off_silently, f"{_LOG}::test_every_flipped_bit_is_found_and_its_place_is_named"
    ),
    "step without all writers": Defect(_step_without_all_writers, _SIMULATION_0),
    "gradient shifted by a missing row": Defect(_gradient_shifted_by_a_missing_row, _SIMULATION_0),
    "retry under a new seq": Defect(_retry_under_a_new_seq, _SIMULATION_0),
    "kept requests forgotten": Defect(_kept_requests_forgotten, _SIMULATION_0),
    "late copies replace the tables again": Defect(_late_copies_replace_the_tables_again, _SIMULATION_0),
    "no check for what is not finite": Defect(
        _no_check_for_what_is_not_finite,
        "tests/memory_store/test_shard.py::test_a_wrong_request_is_refused_and_changes_nothing",
    ),
    "lookup of any version": Defect(_lookup_of_any_version, _SIMULATION_0),
}


_planted: set[str] = set()


def plant_from_environment() -> None:
    """Plant the defect that PKM_PLANTED_DEFECT names, once in this process."""
    name = os.environ.get("PKM_PLANTED_DEFECT", "")
    if name and name not in _planted:
        _planted.add(name)
        DEFECTS[name].plant()
