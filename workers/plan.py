"""What a job would take before it runs: memory of a shard, bytes and time of a step, and what limits it.

The model of a step adds up what follows one another, part by part; what runs beside the trainer's own work counts
only as far as it sticks out. Letters: W trainers, S shards, A micro-batches a step, L memory layers, T tokens of a
trainer's micro-batch, M = heads * k entries of a token, N = T*M entries of a lookup, D row width, b bytes of a number,
R bytes/s of a link, C cores.

**Rows.** N accesses spread uniformly over K rows touch U = K (1 - (1 - 1/K)^N) of them. Real text touches fewer, so
time and bytes that go with U are upper bounds.

**Lookup.** The rule is the client's (memory_store/lookups.py): pool if U > T*S and T*S < N, else fetch; and where
trainers and shards are on one host and carrier and lookup are auto, rows are read in place.

**Bytes** of a trainer's lookup and its backward pass, over all shards:

    in place   out: 4 S (T+1) + (4+b) N + b S T D                  (backward; entries and the output's gradient)
    pool       out: 4 S (T+1) + (4+b) N, then b S T D              in: b S T D, then b N
    fetch      out: 4 U, then (4 + b D) U                          in: b U D

**Time of kernels**: units x cost of the calibration. On one host all processes share C cores; with a network every
trainer and every shard has C cores of its own, and a shard serves its share of W trainers' entries.

**Time of messages**: S calls x cost of a message, and for the bytes the slowest of: the trainer's link, the shard's
link (W/S times the bytes), and the processing of the bytes by gRPC, R being 94 % of the link's rate (headers).

**Overlap.** The row update runs while the next step computes the layers before its first memory (not with clip_norm,
which waits for the norm); gradients that need no answer travel while the layers below are computed and the dense
optimizer runs. With s seconds of such work and a slack of z, max(0, s - z) sticks out; on shared cores at least its
core-seconds / C. Backward takes two thirds of a dense pass, and each layer an equal part of it.

**All-reduce** of P dense parameters: 4 P * 2 (W-1)/W bytes in and out of every trainer, behind the backward pass but
for the last bucket of 25 MiB.

**GPUs.** Each trainer has one of its own, and waits for what lookups put on PCIe (plan_device.py). It goes on while gradients
that need no answer cross and are summed by row, with placement cached, and while copies are asked for again, until the first
memory. GPUs of a host exchange by their own link what the all-reduce and parts of a table need, others over the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from memory_store.errors import UsageError
from workers.job_spec import JobSpec
from workers.plan_costs import Calibration, ClientCosts, Cost, ShardCosts
from workers.plan_device import DeviceMemory, Gpu, crossing, device_memory, exchange
from workers.plan_sizes import Sizes, expected_distinct, shard_bytes

PAYLOAD_SHARE = 1448 / 1538  # of an Ethernet frame of 1500 bytes with its gaps; the rest is headers
BUCKET_BYTES = 25 << 20  # DistributedDataParallel's bucket_cap_mb
BACKWARD_SHARE = 2 / 3

Lookup = Literal["in place", "pool", "fetch", "cached", "on the device", "none"]


@dataclass(frozen=True)
class Network:
    """The link of every host, bytes/s in each direction; None where no message leaves the host.

    `hosts_apart`: every shard and trainer has this machine's cores to itself. A test bed that only limits the links
    sets a rate and leaves it False.
    """

    bytes_per_second: float | None = None
    hosts_apart: bool = False


@dataclass(frozen=True)
class Part:
    """A part of the step. `bytes`: what a trainer sends and receives in it, or moves over PCIe. `seconds`: how long it
    takes by itself; `step_seconds`: what of it the step waits for.
    """

    name: str
    bytes: float
    seconds: float
    step_seconds: float


@dataclass(frozen=True)
class Plan:
    """The prediction. `shard_bytes`: table memory of the fullest shard; `pending_bytes`: what each shard holds besides
    until a step is applied. `device`: what trainers with a GPU, or with tables on their device, take of it.
    """

    trainers: int
    shards: int
    lookup: Lookup
    table_rows: int
    distinct_rows: float
    shard_bytes: int
    pending_bytes: float
    device: DeviceMemory | None
    batch_tokens: int
    parts: tuple[Part, ...]

    @property
    def step_seconds(self) -> float:
        return sum(part.step_seconds for part in self.parts)

    @property
    def tokens_per_second(self) -> float:
        return self.batch_tokens / self.step_seconds

    @property
    def limit(self) -> Part:
        """The part that the step waits for longest."""
        return max(self.parts, key=lambda part: part.step_seconds)


def chosen_lookup(tokens: int, shards: int, entries: int, distinct: float) -> Literal["pool", "fetch"]:
    """The lookup that the client takes for a call; see `memory_store.lookups.cheaper`."""
    return "pool" if tokens * shards < entries and distinct > tokens * shards else "fetch"


def check_network(job: JobSpec, network: Network) -> None:
    """Raises UsageError if nothing of the job could go over a network."""
    if network.bytes_per_second is not None and job.in_one_process():
        otherwise = (
            "use several train.trainers"
            if job.memory and job.memory.placement == "gpu"
            else "set store.carrier=auto"
        )
        raise UsageError(
            f"This job is one process, with no network in it; leave --network out, or {otherwise}."
        )


def make_plan(job: JobSpec, calibration: Calibration, network: Network, gpu: Gpu | None = None) -> Plan:
    """Predict one step of `job`, its shards and trainers as many as it says, with or without a GPU for each trainer."""
    return _Planner(job, calibration, network, gpu).plan()


class _Planner:
    def __init__(self, job: JobSpec, calibration: Calibration, network: Network, gpu: Gpu | None) -> None:
        self._job, self._costs, self._network, self._gpu = job, calibration, network, gpu
        self._sizes = Sizes(job)
        self._lookup: Lookup = self._kind_of_lookup()
        self._lookups = self._sizes.A * self._sizes.L  # of a trainer in a step

    def plan(self) -> Plan:
        sizes, tables = self._sizes, self._job.tables()
        return Plan(
            trainers=sizes.W,
            shards=sizes.S if tables else 0,
            lookup=self._lookup,
            table_rows=self._job.table_rows(),
            distinct_rows=sizes.U,
            shard_bytes=shard_bytes(tables, sizes.S) if tables else 0,
            pending_bytes=self._pending_bytes(),
            device=(
                device_memory(self._job, sizes, self._costs.dense)
                if self._gpu is not None or sizes.placement != "host"
                else None
            ),
            batch_tokens=self._job.train.batch_tokens,
            parts=(*self._dense(), *self._memory(), *self._pcie(), self._all_reduce(), self._optimizer()),
        )

    def _kind_of_lookup(self) -> Lookup:
        sizes, store = self._sizes, self._job.store
        if self._job.memory is None:
            return "none"
        if sizes.placement != "host":
            return "cached" if sizes.placement == "cached" else "on the device"
        if store.carrier == "auto" and store.lookup == "auto" and self._network.bytes_per_second is None:
            return "in place"
        chosen = chosen_lookup(sizes.T, sizes.S, sizes.N, sizes.U)
        return chosen if store.lookup == "auto" else store.lookup

    def _pending_bytes(self) -> float:
        """Contributions that a shard keeps until the step: entries and vectors of all micro-batches of all trainers."""
        s = self._sizes
        if self._lookup == "on the device":
            return 0.0
        entries = s.N / s.S * (4 + 4 + s.b) + s.T * s.D * s.b
        rows = s.U / s.S * (4 + 4 + s.b + s.D * s.b)
        return s.W * s.A * s.L * (rows if self._lookup in ("fetch", "cached") else entries)

    # ---- the trainer's own work ------------------------------------------------------------------------------

    def _dense(self) -> tuple[Part, Part]:
        s, dense = self._sizes, self._costs.dense
        layers = self._dense_seconds(s.A * dense.forward_backward_s)
        selection = self._dense_seconds(s.A * s.L * dense.selection_s)
        return Part("dense forward and backward", 0, layers, layers), Part(
            "selection", 0, selection, selection
        )

    def _optimizer(self) -> Part:
        seconds = self._dense_seconds(self._costs.dense.optimizer_s)
        return Part("dense optimizer", 0, seconds, seconds)

    def _dense_seconds(self, seconds: float) -> float:
        """Seconds of dense work, measured with all cores: trainers of one host share them. A GPU nobody shares."""
        apart = self._network.hosts_apart or self._gpu is not None
        return seconds if apart else seconds * self._sizes.W

    def _all_reduce(self) -> Part:
        s, parameters = self._sizes, self._costs.dense.parameters
        size = 4 * parameters * 2 * (s.W - 1) / s.W
        last_bucket = min(1.0, BUCKET_BYTES / (4 * parameters))
        seconds = self._between_trainers(size)
        backward = BACKWARD_SHARE * self._dense_seconds(self._costs.dense.forward_backward_s)
        return Part("dense all-reduce", 2 * size, seconds, max(last_bucket * seconds, seconds - backward))

    def _between_trainers(self, size: float) -> float:
        """Seconds for what a trainer sends to the others by their collectives, as much as it receives."""
        if self._network.bytes_per_second is not None:
            return size / (self._network.bytes_per_second * PAYLOAD_SHARE)
        if self._gpu is not None:
            return size / self._gpu.peer_bytes_per_second
        # Between CPUs of a host there is no better figure than that of messages over loopback.
        return self._transfer(size, self._costs.wire.sent)

    def _slack(self, share: float) -> float:
        """Seconds of a micro-batch's pass (its `share` of forward and backward) spent below the first memory."""
        s = self._sizes
        below = (s.first_layer - 1) / self._job.model.layers
        return share * below * self._dense_seconds(self._costs.dense.forward_backward_s)

    # ---- the memory ------------------------------------------------------------------------------------------

    def _memory(self) -> tuple[Part, ...]:
        client, shard = self._costs.client, self._costs.shard
        if self._lookup == "none" or client is None or shard is None:
            return ()
        kinds = {
            "in place": self._in_place,
            "pool": self._pool,
            "fetch": self._fetch,
            "cached": self._cached,
            "on the device": self._on_the_device,
        }
        return kinds[self._lookup](client, shard)

    def _in_place(self, client: ClientCosts, shard: ShardCosts) -> tuple[Part, ...]:
        s = self._sizes
        return (
            self._part("lookup: kernel", self._at_trainers(s.N, client.read)),
            self._part("backward: kernel", self._at_trainers(s.N, client.split, client.weigh)),
            self._sent_behind("backward: wire", self._entry_bytes() + self._vector_bytes()),
            self._row_update(s.N, shard.take, shard.update),
        )

    def _pool(self, client: ClientCosts, shard: ShardCosts) -> tuple[Part, ...]:
        s = self._sizes
        chosen = self._at_trainers(s.N, client.choose, client.split)
        return (
            self._part("lookup: kernel", chosen + self._at_shards(s.N, shard.pool)),
            self._called("lookup: wire", self._entry_bytes(), self._vector_bytes()),
            self._part("backward: kernel", self._at_shards(s.N, shard.pool_gradient)),
            self._called("backward: wire", self._vector_bytes(), s.b * s.N),
            self._row_update(s.N, shard.update),
        )

    def _fetch(self, client: ClientCosts, shard: ShardCosts) -> tuple[Part, ...]:
        s = self._sizes
        row_bytes = s.b * s.D * s.U
        pooled = self._at_trainers(s.N, client.choose, client.group, client.pool_fetched)
        return (
            self._part("lookup: kernel", pooled + self._at_shards(s.U, shard.fetch_row)),
            self._called("lookup: wire", 4 * s.U, row_bytes),
            self._part("backward: kernel", self._at_trainers(s.N, client.sum_fetched, client.weigh_fetched)),
            self._sent_behind("backward: wire", 4 * s.U + row_bytes),
            self._row_update(s.U, shard.take_row, shard.update_row),
        )

    def _cached(self, client: ClientCosts, shard: ShardCosts) -> tuple[Part, ...]:
        s, device = self._sizes, self._costs.device
        assert device is not None
        row_bytes, missing = s.b * s.D, (1 - s.f) * s.U
        sums = self._lookups * self._at_trainers(s.N, client.sum_fetched)
        behind = s.A * self._slack(BACKWARD_SHARE) if self._gpu is not None else 0.0
        fetched, on_device = self._at_shards(missing, shard.fetch_row), device.group_s + device.pool_s
        return (
            self._part("lookup: kernel", fetched + self._dense_seconds(s.N * on_device)),
            self._called("lookup: wire", 4 * missing, row_bytes * missing),
            self._part("backward: kernel", self._dense_seconds(s.N * device.weigh_s)),
            Part("backward: row sums", 0, sums, max(0.0, sums - behind)),
            self._sent_behind("backward: wire", (4 + row_bytes) * s.U),
            self._copies(shard),
            self._row_update(s.U, shard.take_row, shard.update_row),
        )

    def _copies(self, shard: ShardCosts) -> Part:
        """Copies asked for again, on their way while the layers below the first memory are computed."""
        s, rows = self._sizes, self._stale_copies()
        seconds = self._at_shards(rows, shard.fetch_row)
        core_seconds, size = shard.fetch_row.core_seconds(s.W * rows), 0.0
        if self._job.store.carrier != "in_process":
            size, received = (4 + s.b * s.D) * rows, self._costs.wire.received
            seconds += self._messages() + self._transfer(size, received)
            core_seconds += received.core_seconds(s.W * size)
        slack = self._slack(1 - BACKWARD_SHARE)
        return Part("copies: wire", size, seconds, self._sticking_out(seconds, core_seconds, slack))

    def _stale_copies(self) -> float:
        """Copies that a trainer asks for after a step, of all tables."""
        s, tables = self._sizes, len(self._job.tables())
        touched = expected_distinct(s.K, self._lookups / tables * s.N)
        return tables * s.f * (s.K if s.W > 1 else touched)

    def _on_the_device(self, client: ClientCosts, shard: ShardCosts) -> tuple[Part, ...]:
        s, device = self._sizes, self._costs.device
        assert device is not None
        entries = self._dense_seconds(s.W * s.N)  # those of all trainers, at each
        parts = [
            self._part("lookup: kernel", entries * device.pool_s),
            self._part("backward: kernel", entries * device.weigh_s),
            self._part("row update", entries * device.update_s),
        ]
        told = exchange(s)
        for name, size in ("lookup: other GPUs", told.forward), ("backward: other GPUs", told.backward):
            if size:
                seconds = self._lookups * self._between_trainers(size)
                parts.append(Part(name, 2 * self._lookups * size, seconds, seconds))
        return tuple(parts)

    # ---- PCIe ------------------------------------------------------------------------------------------------

    def _pcie(self) -> tuple[Part, ...]:
        if self._gpu is None:
            return ()
        s, rate, count = self._sizes, self._gpu.pcie_bytes_per_second, self._lookups
        batch = 16 * self._job.train.batch_tokens / s.W
        parts = [Part("batch: PCIe", batch, batch / rate, batch / rate)]
        crossed = crossing(s)
        forward = count * (crossed.asked + crossed.answered)
        if forward:
            parts.append(Part("lookup: PCIe", forward, forward / rate, forward / rate))
            backward = count * (crossed.entries + crossed.gradient + crossed.weight_gradient)
            waits = 0.0
            if s.placement == "cached":
                waits = s.A * self._slack(BACKWARD_SHARE)
            parts.append(Part("backward: PCIe", backward, backward / rate, max(0.0, backward / rate - waits)))
        if s.placement == "cached":
            again = (4 * s.D + 4) * self._stale_copies()
            waits = self._slack(1 - BACKWARD_SHARE)
            parts.append(Part("copies: PCIe", again, again / rate, max(0.0, again / rate - waits)))
        return tuple(parts)

    def _entry_bytes(self) -> float:
        """Offsets, addresses and weights of a lookup's entries, over all shards."""
        s = self._sizes
        return 4 * s.S * (s.T + 1) + (4 + s.b) * s.N

    def _vector_bytes(self) -> float:
        """A vector of every token, from or to every shard."""
        s = self._sizes
        return s.b * s.S * s.T * s.D

    # ---- kernels ---------------------------------------------------------------------------------------------

    def _part(self, name: str, seconds: float) -> Part:
        """A part of every lookup that the trainer waits for."""
        seconds *= self._lookups
        return Part(name, 0, seconds, seconds)

    def _at_trainers(self, units: float, *costs: Cost) -> float:
        """Seconds of a lookup for `units` of one trainer."""
        s, cores = self._sizes, self._costs.cores
        if self._network.hosts_apart:
            return sum(cost.seconds(units, cores) for cost in costs)
        return sum(cost.seconds(s.W * units, cores, s.W) for cost in costs)

    def _at_shards(self, units: float, *costs: Cost) -> float:
        """Seconds of a lookup for `units` of every trainer, spread over the shards."""
        s, cores = self._sizes, self._costs.cores
        if self._network.hosts_apart:
            return sum(cost.seconds(s.W * units / s.S, cores) for cost in costs)
        return sum(cost.seconds(s.W * units, cores, s.S) for cost in costs)

    def _row_update(self, units: float, *costs: Cost) -> Part:
        """What the shards do between the gradients and the next lookup."""
        seconds = self._lookups * self._at_shards(units, *costs)
        core_seconds = self._lookups * sum(cost.core_seconds(self._sizes.W * units) for cost in costs)
        memory = self._job.memory
        waits = memory is not None and memory.values.clip_norm is not None
        slack = 0.0 if waits else self._slack(1 - BACKWARD_SHARE)
        return Part("row update", 0, seconds, self._sticking_out(seconds, core_seconds, slack))

    def _sticking_out(self, seconds: float, core_seconds: float, slack: float) -> float:
        """What of work beside the trainer's own the step waits for; see the module."""
        shared = 0.0 if self._network.hosts_apart else core_seconds / self._costs.cores
        return max(shared, seconds - slack)

    # ---- messages --------------------------------------------------------------------------------------------

    def _called(self, name: str, sent: float, received: float) -> Part:
        """Calls to all shards whose answers the trainer waits for; bytes of one trainer and lookup."""
        if self._job.store.carrier == "in_process":
            return Part(name, 0, 0.0, 0.0)
        wire = self._costs.wire
        seconds = self._messages() + self._transfer(sent, wire.sent) + self._transfer(received, wire.received)
        return Part(name, self._lookups * (sent + received), *(2 * [self._lookups * seconds]))

    def _sent_behind(self, name: str, sent: float) -> Part:
        """Gradients that need no answer: the trainer goes on with the layers below and with its optimizer."""
        if self._job.store.carrier == "in_process":
            return Part(name, 0, 0.0, 0.0)
        wire, count = self._costs.wire.sent, self._lookups
        seconds = count * (self._messages() + self._transfer(sent, wire))
        slack = self._sizes.A * self._slack(BACKWARD_SHARE) + self._dense_seconds(
            self._costs.dense.optimizer_s
        )
        core_seconds = wire.core_seconds(count * self._sizes.W * sent)
        return Part(name, count * sent, seconds, self._sticking_out(seconds, core_seconds, slack))

    def _messages(self) -> float:
        """Seconds of one call to every shard: a Python process makes one at a time."""
        return self._sizes.S * self._costs.wire.message_s

    def _transfer(self, size: float, cost: Cost) -> float:
        """Seconds for `size` bytes between one trainer and all shards, as all trainers do so at once."""
        s, cores, network = self._sizes, self._costs.cores, self._network
        processing = (
            cost.seconds(size, cores) if network.hosts_apart else cost.seconds(s.W * size, cores, s.W)
        )
        if network.bytes_per_second is None:
            return processing
        link = size * max(1.0, s.W / s.S) / (network.bytes_per_second * PAYLOAD_SHARE)
        return max(link, processing)
