"""Tables that lie on the devices of all trainers of a job: how these find each other.

Each trainer serves the image of its part as a shard serves its rows, to the others alone: the leader has first values, cuts
and statistics from there. What steps move goes by the collectives of torch (device_peers.py).
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from memory_store.carriers.base import Carrier
from memory_store.carriers.grpc_client import GrpcCarrier
from memory_store.carriers.grpc_credentials import Credentials
from memory_store.carriers.grpc_server import ShardServer
from memory_store.carriers.in_process import InProcessCarrier
from memory_store.shard_host import ShardHost
from memory_store.shard_metrics import ShardMetrics
from memory_store.table_spec import TableSpec
from workers.gpu.device_peers import Alone, ProcessPeers
from workers.gpu.device_store import DeviceStore
from workers.ranks import Ranks


@dataclass(frozen=True)
class DeviceGroup:
    """What the trainers of a job share: the `token` that a request must carry, and credentials (serving, asking).

    With these they serve over TLS what other hosts can reach; without, they serve their own host alone.
    """

    token: str
    credentials: tuple[Credentials, Credentials] | None = None

    @classmethod
    def new(cls, credentials: tuple[Credentials, Credentials] | None) -> DeviceGroup:
        """One with a token that nobody else knows."""
        return cls(secrets.token_hex(32), credentials)

    def join(
        self, specs: Sequence[TableSpec], ranks: Ranks, host_address: str, metrics: ShardMetrics
    ) -> DeviceStore:
        """The store of one trainer, which has not joined the writers yet. All trainers must call it."""
        serving, asking = self.credentials or (None, None)

        def reach(host: ShardHost) -> list[Carrier]:
            server = ShardServer(host, f"{host_address}:0", self.token, credentials=serving)
            addresses = ranks.every(f"{host_address}:{server.port}")
            return [
                _Served(host, server)
                if rank == ranks.rank
                else GrpcCarrier(address, self.token, "float32", asking)
                for rank, address in enumerate(addresses)
            ]

        peers = ProcessPeers() if ranks.world > 1 else Alone()
        return DeviceStore(specs, ranks.device, metrics, peers, reach, secrets.token_hex(8))


class _Served(InProcessCarrier):
    """This trainer's own image, which others reach through `server` until this is closed."""

    def __init__(self, host: ShardHost, server: ShardServer) -> None:
        super().__init__(host)
        self._server = server

    def close(self) -> None:
        self._server.stop(0)
        super().close()
