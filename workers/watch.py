"""The driver's watch over shards and trainers that don't die, but fall silent: they are named, ended, and started again.

A process that was stopped, that hangs, or whose host no longer answers keeps its place for ever as far as Ray can see. So
every shard is asked for a sign of life, and every trainer leaves some (heartbeat.py). Who has given none for
`silent_after` seconds, or has not got on with its work for so long while nobody else is behind it, is killed: what
follows is the same as after any other death.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from memory_store.actor import ShardBinding, ShardGroup
from memory_store.carriers.grpc_sign_of_life import Sign, sign_of_life
from memory_store.errors import StoreError
from workers.heartbeat import STARTING, Beat, read_beats

_EVERY_S = 1.0
_KILL_TIMEOUT_S = 60.0

_log = logging.getLogger(__name__)


class Watch:
    """Watches the `shards` of a job, and its trainers by what they leave in `beats`, in a thread of its own until `stop`.

    `tell(message)` is told what was found, before it is ended; `on_restart` is called for every shard that was started again.
    """

    def __init__(
        self,
        shards: ShardGroup | None,
        beats: Path,
        silent_after: float,
        tell: Callable[[str], None],
        on_restart: Callable[[], None] = lambda: None,
    ) -> None:
        self._shards, self._beats, self._silent_after, self._tell = shards, beats, silent_after, tell
        self._on_restart = on_restart
        self._bindings: dict[int, ShardBinding] = {}
        self._incarnations: dict[int, str] = {}
        self._heard: dict[int, float] = {}
        self._trainers = TrainerWatch(silent_after)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(_EVERY_S):
            try:
                all_alive = True
                if self._shards is not None:
                    signs = [self._look_at_shard(self._shards, shard) for shard in range(self._shards.shards)]
                    all_alive = all(signs)
                beats = read_beats(self._beats)
                for beat, what in self._trainers.hung(beats, time.monotonic(), shards_alive=all_alive):
                    self._tell(
                        f"Trainer {beat.rank} {what}; it is ended, and the trainers are started again."
                    )
                    end_process(beat.node, beat.process)
            except Exception:
                _log.exception("the watch could not look")

    def _look_at_shard(self, group: ShardGroup, shard: int) -> bool:
        """Whether it gives a sign of life; ends it if it has given none for long."""
        binding = self._bindings.get(shard)
        if binding is None:
            try:
                binding = self._bindings[shard] = group.binding(shard, _EVERY_S)
                if self._incarnations.get(shard, binding.incarnation) != binding.incarnation:
                    self._on_restart()
                self._incarnations[shard] = binding.incarnation
                self._heard[shard] = time.monotonic()
            except StoreError:
                pass  # being started again, which is Ray's business
            return False
        sign = sign_of_life(binding.address, _EVERY_S, group.token, group.credentials)
        now = time.monotonic()
        if sign == Sign.ALIVE:
            self._heard[shard] = now
            return True
        if sign == Sign.GONE:
            del self._bindings[shard]
        elif now > self._heard[shard] + self._silent_after:
            silence = now - self._heard[shard]
            self._tell(
                f"Shard {shard} at {binding.address} has given no sign of life for {silence:.0f} s; it is ended and "
                "started again."
            )
            end_process(binding.node, binding.process)
            del self._bindings[shard]
        return False


class TrainerWatch:
    """Which trainers hang, from the signs of life that are seen, and when."""

    def __init__(self, silent_after: float) -> None:
        self._silent_after = silent_after
        self._seen: dict[int, tuple[Beat, float, float]] = {}  # and since when: its count, its progress
        self._ended: set[int] = (
            set()
        )  # processes that have been found; their last sign of life lies there still

    def hung(self, beats: Sequence[Beat], now: float, *, shards_alive: bool = True) -> list[tuple[Beat, str]]:
        """The trainers that are to be ended, and what is wrong with each. Who waits for a shard is not to blame."""
        found = []
        beats = [beat for beat in beats if beat.process not in self._ended]
        for beat in beats:
            before, counted, progressed = self._seen.get(beat.rank, (beat, now, now))
            if beat.process != before.process:
                before, counted, progressed = beat, now, now
            counted = now if beat.count != before.count else counted
            progressed = now if beat.progress != before.progress or not shards_alive else progressed
            self._seen[beat.rank] = beat, counted, progressed
            if now > counted + self._silent_after:
                what = f"has given no sign of life for {now - counted:.0f} s, since {beat.doing}"
                found.append((beat, what))
        if not found and beats and all(beat.stage != STARTING for beat in beats):
            behind = min(beat.progress for beat in beats)
            last = [beat for beat in beats if beat.progress == behind]
            if all(now > self._seen[beat.rank][2] + self._silent_after for beat in last):
                for beat in last:
                    stood = now - self._seen[beat.rank][2]
                    found.append((beat, f"has not got on for {stood:.0f} s with {beat.doing}"))
        for beat, _ in found:
            del self._seen[beat.rank]
            self._ended.add(beat.process)
        return found


def end_process(node: str, process: int) -> None:
    """Kill a process of Ray's on a host of the cluster; returns when that is done, or can't be done."""
    kill = ray.remote(num_cpus=0, max_retries=0)(_kill)
    there = kill.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
    try:
        ray.get(there.remote(process), timeout=_KILL_TIMEOUT_S)
    except ray.exceptions.RayError as error:
        _log.error("process %d of node %s could not be ended: %s", process, node, type(error).__name__)


def _kill(process: int) -> None:
    import os
    import signal
    from contextlib import suppress
    from pathlib import Path

    with suppress(OSError):
        if Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"ray::"):
            os.kill(process, signal.SIGKILL)
