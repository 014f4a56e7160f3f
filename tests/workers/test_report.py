"""Reading parts of metrics.jsonl, beside reading all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.report import StepRecord, last_record, last_records, read_records, records_after


def write(path: Path, steps: list[int], half_a_line: bool = False) -> None:
    lines = [
        StepRecord(
            step=step,
            loss=1 / step,
            learning_rate=0.1,
            gradient_norm=1.0,
            seconds=0.1,
            tokens_per_second=1e4,
            memory_usage=0.5 if step % 20 == 0 else None,
        ).model_dump_json(exclude_none=True)
        for step in steps
    ]
    path.write_text(
        "".join(line + "\n" for line in lines) + (lines[-1][:30] if half_a_line and lines else "")
    )


@given(
    gaps=st.lists(st.integers(1, 30), max_size=60),
    after=st.integers(-1, 900),
    count=st.integers(1, 70),
    half_a_line=st.booleans(),
)
def test_parts_are_those_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, gaps: list[int], after: int, count: int, half_a_line: bool
) -> None:
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    write(path, [sum(gaps[: place + 1]) for place in range(len(gaps))], half_a_line)
    whole = read_records(path)
    assert len(whole) == len(gaps)
    assert records_after(path, after, count) == [record for record in whole if record.step > after][:count]
    assert last_records(path, count) == whole[-count:]
    assert last_record(path) == (whole[-1] if whole else None)


def test_there_is_nothing_before_the_first_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_records(path) == records_after(path, 0, 5) == last_records(path, 5) == []
    assert last_record(path) is None


def test_only_the_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, list(range(1, 4000)))
    assert [record.step for record in last_records(path, 40)] == list(range(3960, 4000))
    damaged = path.read_bytes()
    path.write_bytes(b"not a record\n" + damaged[13:])
    assert [record.step for record in last_records(path, 40)] == list(range(3960, 4000))
