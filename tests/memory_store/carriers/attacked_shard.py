"""A shard with a port, whose bytes can be seen, and each request that there is as an honest writer sends it."""

from __future__ import annotations

from pathlib import Path

import grpc
import numpy as np

from memory_store import TableSpec
from memory_store import messages as m
from memory_store.carriers.grpc_server import METHOD, ShardServer
from memory_store.carriers.grpc_sign_of_life import TOKEN_KEY
from memory_store.placement import Placement
from memory_store.shard import ShardCore
from memory_store.shard_host import ShardHost
from memory_store.table_spec import OptimizerSpec
from memory_store.wire import Terms, frames, raised, read_frames

SPEC = TableSpec("memory", 2048, 4, optimizer=OptimizerSpec("adam"))
TOKEN = "canary-7c1d-token-of-the-job"
SENDER = m.Sender("session", 5, 0)
DEADLINE_S = 60.0
ROWS = np.array([0, 1, 5], np.uint32)
OFFSETS = np.array([0, 1, 3], np.int32)
WEIGHTS, VECTORS, ROW_VECTORS = (np.ones(shape, np.float32) for shape in (3, (2, 4), (3, 4)))


class Shard:
    """A served shard of 16 buckets, whose bytes can be seen."""

    def __init__(self, cuts: Path) -> None:
        self.host = ShardHost(ShardCore([SPEC], Placement.even(64), 0), cuts=cuts)
        self.server = ShardServer(self.host, "127.0.0.1:0", TOKEN)
        self.address = f"127.0.0.1:{self.server.port}"
        self.channels: list[grpc.Channel] = []
        self.ask(m.OpenGroup(SENDER.session, SENDER.epoch, 1))

    def channel(self) -> grpc.Channel:
        channel = grpc.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)])
        self.channels.append(channel)
        return channel

    def send(self, sent: list[bytes], deadline_s: float | None = DEADLINE_S, token: str = TOKEN) -> m.Reply:
        """The reply to frames, or the error that it stands for."""
        call = self.channel().stream_stream(METHOD)
        reply, _ = read_frames(call(iter(sent), metadata=[(TOKEN_KEY, token)], timeout=deadline_s))
        if isinstance(reply, m.Failure):
            raise raised(reply)
        return reply  # type: ignore[return-value]

    def ask(self, request: m.Request) -> m.Reply:
        return self.send(list(frames(request, Terms(1000))))

    def content(self) -> bytes:
        part = self.host._core.tables["memory"]
        return b"".join(array.tobytes() for _, array in part.columns()) + bytes([self.host._core.version])

    def close(self) -> None:
        for channel in self.channels:
            channel.close()
        self.server.stop(0)


def requests(sender: m.Sender = SENDER, seq: int = 1) -> list[m.Request]:
    """Each request that there is, as an honest writer sends it."""
    none = np.empty(0, np.uint32), np.empty(0, np.float32)
    rates = np.array([0.1])
    return [
        m.Describe(),
        m.OpenGroup(sender.session, sender.epoch, 1),
        m.Fetch("memory", 0, False, ROWS, *none),
        m.Pool(sender, "memory", 0, 7, True, False, OFFSETS, ROWS, WEIGHTS),
        m.PoolGradient(sender, seq, 0, 7, VECTORS),
        m.RowGradient(sender, seq, 0, "memory", ROWS, ROW_VECTORS),
        m.EntryGradient(sender, seq, 0, "memory", OFFSETS, ROWS, WEIGHTS, VECTORS),
        m.ReplaceRows(sender, seq, 0, "memory", ROWS, ROW_VECTORS),
        m.Commit(sender, seq, 0, 0, False, 1.0, rates),
        m.Apply(sender, 0, rates),
        m.CountAccesses("memory", -1),
        m.DrawAccesses("memory", 2, 2),
        m.ClearAccesses("memory"),
        m.CountTouched("memory", 0),
        m.BeginCut(sender, "/tmp/step-00000000", 0, 1),
        m.WriteCut(sender, "/tmp/step-00000000", 0, 1),
        m.LoadCut(sender, seq, "/tmp/step-00000000"),
        m.Initialise(sender, seq),
    ]
