"""Turns: work of one tenant does not wait for that of another who has more, and no tenant has all threads."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from service.jobs import turns as turns_module
from service.jobs.turns import THREADS, THREADS_OF_ONE_TENANT, Turns

DEADLINE_S = 60.0


def run(scene: Callable[[Turns], Coroutine[Any, Any, None]]) -> None:
    async def begin() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await scene(Turns())

    asyncio.run(begin())


def test_who_asks_for_little_does_not_wait_for_who_asks_for_much() -> None:
    done: list[str] = []
    gates = {name: threading.Event() for name in ("ann", "eve", "bob")}

    def work(tenant: str) -> None:
        gates[tenant].wait(DEADLINE_S)
        done.append(tenant)

    async def scene(turns: Turns) -> None:
        # Two tenants have all threads, and many calls that wait; then a third one comes.
        calls = [
            asyncio.create_task(turns.take(name, work, name)) for name in ("ann", "eve") for _ in range(50)
        ]
        await asyncio.sleep(0)
        calls.append(asyncio.create_task(turns.take("bob", work, "bob")))
        for gate in gates.values():
            gate.set()
        await asyncio.gather(*calls)

    run(scene)
    assert len(done) == 101
    # Those at work already, and one turn of each other tenant; finishing together may turn some over.
    assert done.index("bob") <= 2 * THREADS


def test_no_tenant_has_all_threads_and_his_calls_keep_their_order() -> None:
    at_work = most = 0
    order: list[int] = []
    lock, gate = threading.Lock(), threading.Event()

    def work(number: int) -> int:
        nonlocal at_work, most
        with lock:
            order.append(number)
            at_work += 1
            most = max(most, at_work)
        gate.wait(DEADLINE_S)
        with lock:
            at_work -= 1
        return number

    async def scene(turns: Turns) -> None:
        calls = [asyncio.create_task(turns.take("ann", work, number)) for number in range(40)]
        await asyncio.sleep(0)
        assert await turns.take("bob", lambda: "answered") == "answered"  # while ann's are all held
        gate.set()
        assert await asyncio.gather(*calls) == list(range(40))

    run(scene)
    assert most == THREADS_OF_ONE_TENANT
    assert all(abs(number - place) < THREADS_OF_ONE_TENANT for place, number in enumerate(order))


def test_what_work_raises_reaches_who_asked_and_what_nobody_waits_for_is_not_begun() -> None:
    begun: list[str] = []
    gate = threading.Event()

    def fail() -> None:
        raise ValueError("no")

    async def scene(turns: Turns) -> None:
        with pytest.raises(ValueError, match="no"):
            await turns.take("ann", fail)
        held = [
            asyncio.create_task(turns.take("ann", gate.wait, DEADLINE_S))
            for _ in range(THREADS_OF_ONE_TENANT)
        ]
        given_up = asyncio.create_task(turns.take("ann", begun.append, "given up"))
        kept = asyncio.create_task(turns.take("ann", begun.append, "kept"))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*held, kept)

    run(scene)
    assert begun == ["kept"]


def test_a_crowd_is_answered_at_a_pace_and_others_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "CROWD", 3)
    monkeypatch.setattr(
        turns_module, "PAUSE_S", 10 * DEADLINE_S
    )  # so that none of the crowd has a second turn here

    async def scene(turns: Turns) -> None:
        crowd = [asyncio.create_task(turns.take("ann", lambda: None)) for _ in range(20)]
        few = [asyncio.create_task(turns.take("bob", lambda: None)) for _ in range(4)]
        await asyncio.gather(*crowd[:THREADS_OF_ONE_TENANT], *few)
        assert await turns.take("eve", lambda: "answered") == "answered"
        assert not any(call.done() for call in crowd[THREADS_OF_ONE_TENANT:])
        for call in crowd:
            call.cancel()

    run(scene)


def test_a_crowd_has_one_thread_while_others_have_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = 3
    monkeypatch.setattr(turns_module, "CROWD", crowd)
    monkeypatch.setattr(turns_module, "PAUSE_S", 0.0)
    calls = 20
    beside: dict[int, int] = {}
    at_work: set[int] = set()

    def work(number: int) -> None:
        beside[number] = len(at_work)
        at_work.add(number)
        time.sleep(0.002)  # so that a second one would meet the first
        at_work.remove(number)

    async def scene(turns: Turns) -> None:
        await asyncio.gather(*(turns.take("ann", work, number) for number in range(calls)))

    run(scene)
    while_crowded = range(THREADS_OF_ONE_TENANT, calls - crowd - 1)
    assert [beside[number] for number in while_crowded] == [0] * len(while_crowded)
