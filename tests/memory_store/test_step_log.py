"""The log's files: every truncation and every changed byte is found, successors fence predecessors, old segments go."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from memory_store.cuts import MANIFEST
from memory_store.errors import LogError, SupersededError
from memory_store.log_records import (
    Base,
    GroupState,
    LoggedBase,
    LoggedCut,
    LoggedGroup,
    LoggedStart,
    LoggedStep,
    TableUpdate,
)
from memory_store.log_storage import FolderStorage
from memory_store.optimizers import Contributions
from memory_store.step_log import LogContent, StepLog

SAMPLE_BYTES = 64 << 10


def opened(folder: Path, incarnation: str = "first", storage: FolderStorage | None = None) -> StepLog:
    return StepLog(
        storage or FolderStorage(folder), shard=0, placement="even", tables="[]", incarnation=incarnation
    )


def begun(folder: Path, storage: FolderStorage | None = None) -> StepLog:
    log = opened(folder, storage=storage)
    assert log.read() is None
    log.start(Base(version=0), GroupState())
    return log


def taken_over(folder: Path, incarnation: str = "second") -> tuple[StepLog, LogContent]:
    log = opened(folder, incarnation)
    content = log.read()
    assert content is not None
    return log, content


def step(number: int, rows: int = 5, dim: int = 4) -> LoggedStep:
    random = np.random.default_rng(number)
    contributions = Contributions(
        addresses=np.sort(random.choice(1000, rows, replace=False)).astype(np.uint32),
        starts=np.arange(rows + 1, dtype=np.int32) * 2,
        vector_numbers=random.integers(0, 3, 2 * rows).astype(np.int32),
        weights=random.random(2 * rows, dtype=np.float32),
        vectors=random.standard_normal((3, dim), dtype=np.float32),
    )
    return LoggedStep(number, {0: number + 1}, (TableUpdate("memory", 0.1 + number / 3, 0.7, contributions),))


def append_all(log: StepLog, numbers: Sequence[int], **form: int) -> None:
    for number in numbers:
        log.append(step(number, **form))
    log.sync()


def described(step: LoggedStep) -> list[object]:
    """All of a step, comparable."""
    return [
        step.step,
        step.seqs,
        *(
            (
                update.table,
                update.learning_rate,
                update.scale,
                *(array.tobytes() for array in vars(update.contributions).values()),
            )
            for update in step.updates
        ),
    ]


def steps_of(content: LogContent, version: int = 0) -> list[list[object]]:
    return [described(each) for each in content.steps(version)]


# ---- written and read ----------------------------------------------------------------------------------------


def test_what_was_appended_is_read_by_every_successor(tmp_path: Path) -> None:
    log = begun(tmp_path)
    log.append(LoggedGroup(GroupState(session="a", epoch=3, writers=2)))
    append_all(log, range(4))
    for life in range(1, 4):
        log, content = taken_over(tmp_path, f"life {life}")
        assert steps_of(content) == [described(step(number)) for number in range(3 + life)]
        assert (content.group.epoch, content.group.seqs) == (3, {0: 3 + life})
        log.resume(3 + life, content.group)
        append_all(log, [3 + life])


def test_another_shards_log_is_refused(tmp_path: Path) -> None:
    begun(tmp_path)
    log = StepLog(FolderStorage(tmp_path), shard=1, placement="even", tables="[]", incarnation="x")
    with pytest.raises(LogError, match="is of shard 0 of placement even, this is shard 1"):
        log.read()


def test_a_step_that_is_missing_is_found(tmp_path: Path) -> None:
    log = begun(tmp_path)
    append_all(log, [0, 2])
    _, content = taken_over(tmp_path)
    with pytest.raises(LogError, match=r"lacks step 1: segment-00000001\.log goes on with 2"):
        steps_of(content)


# ---- damage --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A segment of just over 64 KiB: small records, and large ones."""
    folder = tmp_path_factory.mktemp("sample")
    log = begun(folder)
    numbers = iter(range(1000))
    while (folder / "segment-00000001.log").stat().st_size < SAMPLE_BYTES:
        number = next(numbers)
        append_all(log, [number], rows=300 if number % 3 == 2 else 5, dim=16)
    return (folder / "segment-00000001.log").read_bytes()


class OneFile:
    """A log of one segment, in memory."""

    def __init__(self, content: bytes | bytearray) -> None:
        self.files = {"segment-00000001.log": memoryview(content)}

    def names(self) -> list[str]:
        return sorted(self.files)

    def create(self, name: str) -> None:
        self.files[name] = memoryview(b"")

    def append(self, name: str, pieces: Sequence[memoryview]) -> None:
        raise AssertionError

    def sync(self, name: str) -> None: ...

    def read(self, name: str) -> memoryview:
        return self.files[name]

    def remove(self, name: str) -> None:
        raise AssertionError


def read_again(content: bytes | bytearray) -> list[list[object]]:
    """The steps of a log whose only segment has these bytes."""
    log = StepLog(OneFile(content), shard=0, placement="even", tables="[]", incarnation="second")
    found = log.read()
    return steps_of(found) if found is not None else []


def damage_found(content: bytearray) -> str:
    try:
        read_again(content)
    except LogError as error:
        return str(error)
    return ""


@pytest.mark.slow
def test_a_log_that_ends_anywhere_gives_the_steps_that_are_whole(sample: bytes) -> None:
    whole = read_again(sample)
    ends = [at for at in range(len(sample) + 1) if at == len(sample) or sample[at : at + 8] == b"pkmlog01"]
    ends = ends[1:]  # behind the opening, behind the first step, ...
    assert len(ends) == len(whole) + 1
    for size in range(len(sample)):
        expected = max(0, sum(end <= size for end in ends) - 1)
        assert read_again(sample[:size]) == whole[:expected], size


def test_every_flipped_bit_is_found_and_its_place_is_named(sample: bytes) -> None:
    whole = read_again(sample)
    assert len(whole) > 10
    random = np.random.default_rng(1)
    accepted = []
    for place in range(len(sample)):
        changed = bytearray(sample)
        changed[place] ^= 1 << int(random.integers(8))
        if "segment-00000001.log" not in damage_found(changed):
            accepted.append(place)
    assert accepted == []


@pytest.mark.parametrize("change", ["left out", "doubled", "exchanged"])
def test_records_that_are_moved_are_found(sample: bytes, change: str) -> None:
    marks = [at for at in range(len(sample)) if sample[at : at + 8] == b"pkmlog01"]
    a, b, c = marks[2:5]
    first, second = sample[a:b], sample[b:c]
    middle = {"left out": second, "doubled": first + first + second, "exchanged": second + first}[change]
    with pytest.raises(LogError, match="does not match its checksum"):
        read_again(sample[:a] + middle + sample[c:])


def test_a_segment_whose_end_is_gone_is_missed_by_the_next(tmp_path: Path) -> None:
    log = begun(tmp_path)
    append_all(log, range(3))
    log, content = taken_over(tmp_path)
    log.resume(3, content.group)
    append_all(log, [3])
    first = tmp_path / "segment-00000001.log"
    first.write_bytes(first.read_bytes()[:-100])
    with pytest.raises(LogError, match=r"segment-00000001\.log at byte"):
        taken_over(tmp_path, "third")


# ---- successors ----------------------------------------------------------------------------------------------


def test_a_predecessor_acknowledges_nothing_and_what_it_still_writes_does_not_count(tmp_path: Path) -> None:
    old = begun(tmp_path)
    append_all(old, range(2))
    new, content = taken_over(tmp_path)
    old.append(step(2))
    with pytest.raises(SupersededError, match=r"taken over shard 0 with segment-00000002\.log"):
        old.sync()
    new.resume(2, content.group)
    append_all(new, [2])
    _, content = taken_over(tmp_path, "third")
    assert steps_of(content) == [described(step(number)) for number in range(3)]


@pytest.mark.parametrize(
    "record",
    [
        LoggedCut(2, GroupState()),
        LoggedStart(Base(version=0), GroupState()),
        LoggedBase(Base(version=1, folder="/nowhere")),
    ],
)
def test_a_predecessor_removes_nothing(tmp_path: Path, record: LoggedCut | LoggedStart | LoggedBase) -> None:
    old = begun(tmp_path)
    append_all(old, [0])
    old.append(LoggedCut(1, GroupState()))
    append_all(old, [1])
    new, content = taken_over(tmp_path)
    with pytest.raises(SupersededError):
        old.append(record)
    new.resume(2, content.group)
    _, content = taken_over(tmp_path, "third")
    assert steps_of(content) == [described(step(number)) for number in range(2)]


def test_successors_that_died_before_they_had_begun_are_passed_over(tmp_path: Path) -> None:
    log = begun(tmp_path)
    append_all(log, range(2))
    for life in range(3):
        opened(tmp_path, f"short {life}")
    (tmp_path / "segment-00000003.log").write_bytes(b"pkmlog01 torn")
    _, content = taken_over(tmp_path)
    assert len(steps_of(content)) == 2


# ---- snapshots -------------------------------------------------------------------------------------------------


def cut(folder: Path, version: int, complete: bool = True) -> LoggedBase:
    made = folder / f"cut-{version}"
    made.mkdir()
    if complete:
        (made / MANIFEST).touch()
    return LoggedBase(Base(version=version, folder=str(made)))


def names(folder: Path) -> list[int]:
    return [int(path.stem[-8:]) for path in sorted(folder.glob("*.log"))]


def test_the_log_reaches_back_to_the_second_newest_snapshot_that_can_be_read(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    log = begun(logs)
    kept = []
    for version, complete in [(2, True), (4, True), (6, False), (8, True)]:
        append_all(log, range(version - 2, version))
        log.append(LoggedCut(version, GroupState()))
        append_all(log, [])
        log.append(cut(tmp_path, version, complete))
        kept.append(names(logs))
    # The cut at 6 was never complete: from 8 on the second newest is that of 4.
    assert kept == [[1, 2], [2, 3], [3, 4], [3, 4, 5]]
    _, content = taken_over(logs)
    assert [base.version for base in content.bases] == [4, 6, 8]
    assert [each[0] for each in steps_of(content, 4)] == [4, 5, 6, 7]


def test_a_new_start_forgets_what_was_before(tmp_path: Path) -> None:
    log = begun(tmp_path)
    append_all(log, range(3))
    log.append(LoggedStart(Base(version=1, folder="/cut"), GroupState(epoch=2)))
    append_all(log, [1])
    assert names(tmp_path) == [2]
    _, content = taken_over(tmp_path)
    assert [base.version for base in content.bases] == [1]
    assert [each[0] for each in steps_of(content, 1)] == [1]


# ---- a full disk -----------------------------------------------------------------------------------------------


class FullDisk(FolderStorage):
    """A folder in which the next `room` bytes find room."""

    room = 1 << 30

    def append(self, name: str, pieces: Sequence[memoryview]) -> None:
        size = sum(len(piece) for piece in pieces)
        if size > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= size
        super().append(name, pieces)


@pytest.mark.parametrize(
    "record", [step(1), LoggedCut(1, GroupState()), LoggedStart(Base(version=1), GroupState())]
)
def test_a_record_that_found_no_room_is_written_when_there_is_some(
    tmp_path: Path, record: LoggedStep | LoggedCut | LoggedStart
) -> None:
    disk = FullDisk(tmp_path)
    log = begun(tmp_path, disk)
    append_all(log, [0])
    disk.room = 100
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            log.append(record)
    disk.room = 1 << 30
    log.append(record)
    append_all(log, [2] if isinstance(record, LoggedStep) else [1])
    _, content = taken_over(tmp_path)
    first = content.bases[-1].version
    assert [each[0] for each in steps_of(content, first)] == list(
        range(first, 3 if isinstance(record, LoggedStep) else 2)
    )
