"""What a message costs: calls over loopback to a shard in another process, through the project's server and client."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from memory_store import messages as m
from memory_store.calls import expect
from memory_store.carriers.grpc_client import GrpcCarrier
from memory_store.table_spec import OptimizerSpec, TableSpec
from workers.plan_clock import CORES, Stopwatch
from workers.plan_costs import Cost, WireCosts
from workers.plan_sample_shard import SampleShard
from workers.shard_process import ShardProcess, ShardSettings

ROWS, DIM = 16_384, 256  # 16 MiB, all of them in one message
_CALLS, _EMPTY_CALLS = 8, 60
_TIMEOUT_S = 60.0


def wire_costs() -> WireCosts:
    """Measure them; what the shard does with a message's content is taken off."""
    spec = TableSpec("wire", ROWS, DIM, optimizer=OptimizerSpec("sgd"))
    addresses = np.arange(ROWS, dtype=np.uint32)
    gradients = np.ones((ROWS, DIM), dtype=np.float32)
    with ShardProcess(ShardSettings([spec], 1, 0, threads=CORES)) as shard:
        clock = Stopwatch()
        local = SampleShard(spec, clock)
        for _ in range(_CALLS):
            local.fetched_step(addresses, gradients)
        carrier = GrpcCarrier(shard.address(), "")

        def call(request: m.Request) -> None:
            carrier.submit(request, _TIMEOUT_S).result(_TIMEOUT_S)

        try:
            expect(carrier.submit(m.OpenGroup("wire", 1, 1), _TIMEOUT_S), m.Done)
            none = np.empty(0, dtype=np.uint32), np.empty(0, dtype=np.float32)
            fetch = m.Fetch("wire", 0, False, addresses, *none)
            received = _per_byte(lambda _: call(fetch), clock.seconds("fetch"))
            sender = m.Sender("wire", 1, 0)
            sent = _per_byte(
                lambda seq: call(m.RowGradient(sender, seq, 0, "wire", addresses, gradients)),
                clock.seconds("take rows"),
            )
            for _ in range(_EMPTY_CALLS):
                clock.time("empty", lambda: call(m.Describe()))
        finally:
            carrier.close()
    return WireCosts(sent, received, clock.seconds("empty"))


def _per_byte(call: Callable[[int], None], content_s: float) -> Cost:
    """Cost of a byte in calls number 1, 2, ... of all rows each, without the seconds that their content takes."""
    clock = Stopwatch()
    for number in range(1, _CALLS + 2):
        clock.time("call", partial(call, number))
    call_s = clock.seconds("call")
    return Cost.on_two_cores(max(call_s - content_s, 0.1 * call_s) / (4 * ROWS * DIM), CORES)
