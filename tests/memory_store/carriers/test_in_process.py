"""The carrier inside a process: answers at once where it can, and keeps the deadline where it must wait."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from memory_store import TableSpec
from memory_store import messages as m
from memory_store.carriers.in_process import InProcessCarrier
from memory_store.errors import StoreError
from memory_store.opening import in_process_hosts

SPEC = TableSpec("memory", rows=50, dim=2)


def fetch(version: int) -> m.Fetch:
    none = np.empty(0, np.uint32)
    return m.Fetch("memory", version, False, np.array([3], np.uint32), none, np.empty(0, np.float32))


def test_what_can_be_answered_is_answered_at_once():
    (host,) = in_process_hosts([SPEC])
    carrier = InProcessCarrier(host)
    assert carrier.submit(m.Describe(), 60).done()
    refused = carrier.submit(fetch(-1), 60)
    assert isinstance(refused.exception(0), StoreError)


def test_a_version_that_is_never_reached_ends_at_the_deadline():
    (host,) = in_process_hosts([SPEC])
    threads = threading.active_count()
    with pytest.raises(StoreError, match=r"Fetch within 0\.05 s: it waits for the other writers"):
        InProcessCarrier(host).submit(fetch(5), 0.05).result(30)
    while threading.active_count() > threads:
        time.sleep(0.001)


def test_an_answer_in_time_stops_the_clock():
    (host,) = in_process_hosts([SPEC])
    carrier = InProcessCarrier(host)
    sender = m.Sender("session", 1, 0)
    carrier.submit(m.OpenGroup("session", 1, 1), 60).result(0)
    threads = threading.active_count()
    waiting = carrier.submit(fetch(1), 60)
    assert not waiting.done()
    carrier.submit(m.Commit(sender, 1, 0, 0, False, 1.0, np.ones(1)), 60).result(0)
    assert isinstance(waiting.result(0), m.Rows)
    while threading.active_count() > threads:
        time.sleep(0.001)
