"""Shards as Ray actors: one named actor per shard, in the placement group of its job, started again by Ray when it dies.

Ray places, names and restarts the processes; row payloads never pass through it. Each actor serves its shard over gRPC
on a port of its own, and tells that binding to whoever looks it up by name. An actor that Ray has started again recovers
from its log; if it has none, it has the first values at version 0: its trainers notice (the epoch is gone) and restore
the last cut.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
from ray.util.placement_group import PlacementGroup, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from memory_store.carriers.grpc_credentials import Credentials
from memory_store.carriers.grpc_server import ShardServer
from memory_store.carriers.reconnecting import ATTEMPT_S
from memory_store.client import TIMEOUT_S, StoreClient
from memory_store.errors import StoreError
from memory_store.lookups import LookupKind
from memory_store.metrics_port import Scrape
from memory_store.numa import Neighbours, keep_to_one_node, neighbours
from memory_store.opening import connect
from memory_store.placement import Placement
from memory_store.process_host import process_host
from memory_store.table import PROCESS_BYTES, part_bytes
from memory_store.table_spec import TableSpec
from memory_store.traces import Traces
from memory_store.wire_types import WireType

NAMESPACE = "pkm"  # of the actors of a job that has a Ray for itself
_LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 120.0
_END_TRACES_S = 15.0


@dataclass(frozen=True)
class ShardBinding:
    """Where a shard answers now."""

    address: str
    incarnation: str
    node: str
    process: int


@dataclass(frozen=True)
class ShardUse:
    """What a shard's process has used since it started: seconds of processor time, and calls that it answered; and the bytes
    of memory that it holds now."""

    address: str
    incarnation: str
    processor_seconds: float
    calls: int
    memory_bytes: int


class ShardActor:
    """The process of one shard. Its table is ready, and its port open, when the constructor returns."""

    def __init__(
        self,
        specs: Sequence[TableSpec],
        shards: int,
        shard: int,
        token: str,
        logs: Path | None,
        cuts: Path | None,
        credentials: Credentials | None,
        scrape: Scrape | None,
        traces: Traces | None,
        among: Neighbours,
    ) -> None:
        keep_to_one_node(among)
        self._incarnation = secrets.token_hex(8)
        host = process_host(specs, Placement.even(shards), shard, self._incarnation, logs, cuts)
        self._spans = traces.of_shard(host, shard) if traces is not None else None
        # What other hosts can reach is served over TLS alone.
        host_address: str = _LOOPBACK
        if credentials is not None:
            host_address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        self._server = ShardServer(host, f"{host_address}:0", token, credentials=credentials)
        self._address = f"{host_address}:{self._server.port}"
        if scrape is not None:
            self._metrics = scrape.serve(host.metrics.registry, host_address, "shard", shard)

    def binding(self) -> ShardBinding:
        """Where this shard answers."""
        node = ray.get_runtime_context().get_node_id()
        return ShardBinding(self._address, self._incarnation, node, os.getpid())

    def use(self) -> ShardUse:
        """What this process uses of its host."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return ShardUse(
            self._address,
            self._incarnation,
            time.process_time(),
            self._server.calls,
            pages * os.sysconf("SC_PAGE_SIZE"),
        )

    def end_traces(self) -> None:
        """Hand on the spans that wait: the process is about to be ended."""
        if self._spans is not None:
            self._spans.close()

    def process_id(self) -> int:
        """The process, for those who watch it or test its death."""
        return os.getpid()


@dataclass(frozen=True)
class ShardGroup:
    """The running shards of a job: what a trainer needs to reach them, by name."""

    job: str
    shards: int
    token: str
    namespace: str = NAMESPACE
    credentials: Credentials | None = None  # of those who ask

    def actor_name(self, shard: int) -> str:
        return f"{self.job}-shard-{shard}"

    def binding(self, shard: int, timeout_s: float = START_TIMEOUT_S) -> ShardBinding:
        """Where a shard answers now; waits for one that is being started again.

        Raises StoreError if it does not come up in time.
        """
        try:
            actor = ray.get_actor(self.actor_name(shard), namespace=self.namespace)
            answer: Any = ray.get(actor.binding.remote(), timeout=timeout_s)
        except (ValueError, ray.exceptions.RayError) as error:
            raise StoreError(
                f"Shard {shard} of job {self.job!r} did not start within {timeout_s:g} s ({type(error).__name__})."
            ) from None
        return ShardBinding(answer.address, answer.incarnation, answer.node, answer.process)

    def use(self, shard: int, timeout_s: float) -> ShardUse:
        """What a shard uses of its host. Raises StoreError if it does not say so in time."""
        try:
            actor = ray.get_actor(self.actor_name(shard), namespace=self.namespace)
            answer: Any = ray.get(actor.use.remote(), timeout=timeout_s)
        except (ValueError, ray.exceptions.RayError) as error:
            raise StoreError(f"Shard {shard} does not say what it uses ({type(error).__name__}).") from None
        return ShardUse(**vars(answer))

    def connect(
        self,
        *,
        lookup: LookupKind = "auto",
        wire: WireType = "float32",
        in_place: bool = True,
        timeout_s: float = TIMEOUT_S,
    ) -> StoreClient:
        """A client of these shards, which has not joined a group yet (see `memory_store.connect`)."""
        return connect(
            [self.binding(shard).address for shard in range(self.shards)],
            token=self.token,
            credentials=self.credentials,
            lookup=lookup,
            wire=wire,
            in_place=in_place,
            timeout_s=timeout_s,
            find=lambda shard: self.binding(shard, ATTEMPT_S).address,
        )


@dataclass(frozen=True)
class RunningShards:
    """The shards as their owner sees them: they live until `stop`, or until the owner's process ends."""

    group: ShardGroup
    actors: list[Any]
    traced: bool = False

    def stop(self) -> None:
        if self.traced:
            ending = [actor.end_traces.remote() for actor in self.actors]
            ray.wait(ending, num_returns=len(ending), timeout=_END_TRACES_S)
        for actor in self.actors:
            ray.kill(actor)


def shard_bundles(specs: Sequence[TableSpec], shards: int) -> list[dict[str, float]]:
    """What each shard asks of its host: a CPU, and the memory of its part of the tables."""
    rows = Placement.even(shards)
    tables = [sum(sum(part_bytes(spec, rows, shard)) for spec in specs) for shard in range(shards)]
    return [{"CPU": 1.0, "memory": float(PROCESS_BYTES + table)} for table in tables]


def start_shards(
    job: str,
    specs: Sequence[TableSpec],
    shards: int,
    place: PlacementGroup,
    *,
    namespace: str = NAMESPACE,
    logs: Path | None = None,
    cuts: Path | None = None,
    credentials: tuple[Credentials, Credentials] | None = None,
    scrape: Scrape | None = None,
    traces: Traces | None = None,
) -> RunningShards:
    """Start the shards of a job in the first bundles of its `place`, which are those of `shard_bundles`.

    With `logs`, a folder that all hosts can reach, each keeps a log there and recovers from it. With `cuts`, such a folder
    too, none reads or writes a cut elsewhere. With `credentials`, those of
    the shards and those of who asks them, shards answer on their hosts' addresses over TLS; without, to this host alone.
    `scrape` says how they serve their metrics, `traces` where their spans of traced steps go.
    """
    bundles = shard_bundles(specs, shards)
    group = ShardGroup(job, shards, secrets.token_hex(32), namespace, credentials[1] if credentials else None)
    host_of_bundle: dict[int, str] = placement_group_table(place)["bundles_to_node_id"]
    among = neighbours([host_of_bundle[shard] for shard in range(shards)])
    actor_class = ray.remote(ShardActor)
    actors: list[Any] = [
        actor_class.options(
            name=group.actor_name(shard),
            namespace=namespace,
            num_cpus=bundles[shard]["CPU"],
            memory=bundles[shard]["memory"],
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=4,
            scheduling_strategy=PlacementGroupSchedulingStrategy(place, placement_group_bundle_index=shard),
            runtime_env={"env_vars": kernel_environment(shards)},
        ).remote(
            tuple(specs),
            shards,
            shard,
            group.token,
            logs,
            cuts,
            credentials[0] if credentials else None,
            scrape,
            traces,
            among[shard],
        )
        for shard in range(shards)
    ]
    ray.get([actor.binding.remote() for actor in actors], timeout=START_TIMEOUT_S)
    return RunningShards(group, actors, traced=traces is not None)


def kernel_environment(shards: int) -> dict[str, str]:
    """Environment of a shard's process: the shards of one host share its cores, and idle kernel threads sleep."""
    threads = str(max(1, (os.cpu_count() or 1) // shards))
    return {"NUMBA_NUM_THREADS": threads, "OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
