"""A short form of the fuzzing: every decoder, some thousand inputs, always the same."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from memory_store.errors import StoreError
from tests.fuzz.mutation import mutated
from tests.fuzz.targets import TARGETS, Target, feed_many


@pytest.mark.parametrize("inputs", [6000, pytest.param(60_000, marks=pytest.mark.slow)])
def test_no_input_crashes_a_decoder(inputs: int) -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--inputs", str(inputs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["inputs"] == inputs
    assert summary["crashes"] == 0
    # Most are refused, and some are near enough to be taken.
    assert summary["refused"] > inputs / 4
    assert summary["taken"] > inputs / 200


def test_an_error_that_is_no_refusal_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(data: bytes) -> None:
        if len(data) > 3 and data[3] == 0:
            raise IndexError("a careless decoder")
        if data != b"valid input":
            raise StoreError("no")

    monkeypatch.setitem(TARGETS, "message", Target(lambda: [b"valid input"], careless, (StoreError,)))
    with pytest.raises(IndexError, match="careless") as found:
        feed_many("message", 0, 10_000, mutated)
    assert "of seed 0 of 'message'" in found.value.__notes__[0]
