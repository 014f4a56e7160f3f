"""Shards that are attacked and killed at the same time: their honest writer sees what an undisturbed store would answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import pytest

from memory_store import messages as m
from memory_store.carriers.grpc_server import METHOD
from memory_store.carriers.grpc_sign_of_life import TOKEN_KEY
from memory_store.opening import in_process_store
from memory_store.wire import Terms, frames
from tests.memory_store.test_recovery import SHARDS, SPEC, Shards, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 12
KILLED_AT = {3: 0, 6: 1, 9: 0}


def attacks(session: str, epoch: int, over: threading.Event) -> Iterator[tuple[str, Iterator[bytes]]]:
    """A token and what is sent with it, without end: forged, malformed, replayed and endless requests."""

    def silence() -> Iterator[bytes]:
        over.wait()
        yield b""

    rows, vectors = np.arange(3, dtype=np.uint32), np.ones((3, SPEC.dim), np.float32)
    step = 0
    while not over.is_set():
        step += 1
        for sender in (
            m.Sender(session, epoch + 1, 0),
            m.Sender("other", epoch, 0),
            m.Sender(session, epoch, 1),
        ):
            yield "token", frames(m.RowGradient(sender, step, step, "memory", rows, vectors), Terms(1000))
            yield "token", frames(m.Initialise(sender, step), Terms(1000))
        own = m.Sender(session, epoch, 0)
        yield (
            "token",
            frames(m.RowGradient(own, 1, 0, "memory", rows, vectors), Terms(1000)),
        )  # taken long ago
        yield "token", frames(m.RowGradient(own, 2**62, step, "memory", rows + 2**31, vectors), Terms(1000))
        yield "token", frames(m.LoadCut(own, 2**62, "../../etc"), Terms(1000))
        yield "wrong", frames(m.Initialise(own, 2**62), Terms(1000))
        yield "token", iter([b"\xff" * 1000])
        yield "token", silence()


def test_what_was_acknowledged_under_attack_is_there_once(tmp_path: Path) -> None:
    alone = in_process_store([SPEC], SHARDS, lookup="fetch")
    shards, over, answered = Shards(tmp_path / "logs"), threading.Event(), []
    try:
        store = shards.connect(lookup="fetch")
        store.take_over()
        train(store, range(1))  # so that there is an update to replay

        def attack(shard: int) -> None:
            for token, sent in attacks(store.sender.session, store.sender.epoch, over):
                with suppress(grpc.RpcError), grpc.insecure_channel(shards._addresses[shard]) as channel:
                    call = channel.stream_stream(METHOD)
                    answered.append(list(call(sent, metadata=[(TOKEN_KEY, token)], timeout=0.5)))

        attackers = [threading.Thread(target=attack, args=(shard % SHARDS,)) for shard in range(2 * SHARDS)]
        for attacker in attackers:
            attacker.start()
        killed = []

        def kill(step: int, point: str) -> None:
            if point == "before the commit" and step in KILLED_AT:
                before = len(answered)
                wait_until(lambda: len(answered) > before + 5)
                shards.kill(KILLED_AT[step])
                killed.append(step)

        seen = train(store, range(1, STEPS), at=kill)
        over.set()
        for attacker in attackers:
            attacker.join()
        assert killed == list(KILLED_AT)
        train(alone, range(1))
        assert seen == train(alone, range(1, STEPS))
        rows, ones = np.arange(SPEC.rows).reshape(-1, 1), np.ones((SPEC.rows, 1), np.float32)
        content = [
            each.table("memory").lookup(rows, ones, keep=False).output.tobytes() for each in (store, alone)
        ]
        assert content[0] == content[1]
        store.close()
    finally:
        over.set()
        shards.close()


def wait_until(true: Callable[[], bool]) -> None:
    waiting = threading.Event()
    for _ in range(1200):
        if true():
            return
        waiting.wait(0.1)
    raise AssertionError("the attackers were not answered")
