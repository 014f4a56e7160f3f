"""How many bytes a lookup and its backward pass put on the wire: counted on the frames themselves."""

from __future__ import annotations

from concurrent.futures import Future

from benchmarks.bags import Bags
from memory_store import messages as m
from memory_store.carriers.base import Carrier
from memory_store.carriers.in_process import InProcessCarrier
from memory_store.client import StoreClient
from memory_store.lookups import LookupKind
from memory_store.opening import in_process_hosts
from memory_store.placement import Placement
from memory_store.table_spec import TableSpec
from memory_store.wire import Terms, frames
from memory_store.wire_types import WireType


class _CountingCarrier:
    """Counts the frames that requests and replies would be."""

    def __init__(self, inner: Carrier, wire: WireType) -> None:
        self._inner = inner
        self._terms = Terms(wire=wire)
        self.bytes_seen = 0

    def submit(self, request: m.Request, timeout_s: float) -> Future[m.Reply]:
        future = self._inner.submit(request, timeout_s)
        self.bytes_seen += self._bytes_of(request) + self._bytes_of(future.result())
        return future

    def close(self) -> None:
        self._inner.close()

    def _bytes_of(self, message: m.Request | m.Reply) -> int:
        return sum(len(frame) for frame in frames(message, self._terms))


class CountedStore:
    """A store of S shards in this process, every message of which is counted as if it went over the wire."""

    def __init__(self, spec: TableSpec, shards: int) -> None:
        self._spec, self._shards = spec, shards
        self._hosts = in_process_hosts([spec], shards)

    def bytes_of(self, lookup: LookupKind, bags: Bags, wire: WireType = "float32") -> int:
        """Bytes of a lookup and its backward pass, both directions together."""
        carriers = [_CountingCarrier(InProcessCarrier(host), wire) for host in self._hosts]
        client = StoreClient(carriers, [self._spec], Placement.even(self._shards), lookup=lookup)
        client.take_over()
        before = sum(carrier.bytes_seen for carrier in carriers)
        found = client.table(self._spec.name).lookup(bags.rows, bags.weights, keep=True)
        found.backward(bags.output_gradient)
        return sum(carrier.bytes_seen for carrier in carriers) - before
