"""A table in another process as one would write it without this project: a Ray actor, and a TCP socket.

The actor gathers and pools with our own kernels, so that only the way of the rows is compared. One process
answers both ways: calls of the actor return arrays through Ray's object store; the socket sends rows out of a
buffer that is used again, and its client receives them into one.
"""

from __future__ import annotations

import socket
import struct
import threading
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from memory_store.actor import kernel_environment
from memory_store.arena import Arena
from memory_store.kernels import gather_rows, pool_rows
from memory_store.placement import Placement
from memory_store.reused_memory import empty
from memory_store.table import TablePart, part_bytes
from memory_store.table_spec import TableSpec

_HEADER = struct.Struct("<II")  # tokens (0: gather), entries
_SOCKET_BYTES = 4 << 20

Addresses = NDArray[np.uint32]
Offsets = NDArray[np.int32]
Floats = NDArray[np.float32]


class PeerTable:
    """The actor; its rows are those of our shard, since first values depend on the seed alone."""

    def __init__(self, spec: TableSpec, rows_max: int) -> None:
        placement = Placement.even(1)
        arena = Arena(sum(part_bytes(spec, placement, 0)))
        part = TablePart(spec, placement, 0, arena, arena)
        part.initialise()
        self._values = part.values
        self._reply = empty((rows_max, spec.dim), np.float32)

    def gather(self, addresses: Addresses) -> Floats:
        """Rows `[U, D]` of `addresses` `[U]`."""
        return self._gather(addresses, empty((addresses.size, self._values.shape[1]), np.float32))

    def pool(self, offsets: Offsets, addresses: Addresses, weights: Floats) -> Floats:
        """Weighted sums of rows `[T, D]`, for `offsets` `[T + 1]`."""
        out = empty((offsets.size - 1, self._values.shape[1]), np.float32)
        return self._pool(offsets, addresses, weights, out)

    def listen(self) -> int:
        """Serve one TCP client from now on; returns the port."""
        server = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, args=(server,), daemon=True).start()
        port: int = server.getsockname()[1]
        return port

    def _gather(self, addresses: Addresses, out: Floats) -> Floats:
        gather_rows(self._values, 0, addresses, out)
        return out

    def _pool(self, offsets: Offsets, addresses: Addresses, weights: Floats, out: Floats) -> Floats:
        pool_rows(self._values, 0, offsets, addresses, weights, out)
        return out

    def _serve(self, server: socket.socket) -> None:
        client, _ = server.accept()
        tune(client)
        while header := client.recv(_HEADER.size, socket.MSG_WAITALL):
            tokens, entries = _HEADER.unpack(header)
            addresses = receive(client, np.empty(entries, dtype=np.uint32))
            if tokens:
                offsets = receive(client, np.empty(tokens + 1, dtype=np.int32))
                weights = receive(client, np.empty(entries, dtype=np.float32))
                reply = self._pool(offsets, addresses, weights, self._reply[:tokens])
            else:
                reply = self._gather(addresses, self._reply[:entries])
            client.sendall(reply.data.cast("B"))


class PeerConnection:
    """The client's side of the socket."""

    def __init__(self, port: int, rows_max: int, dim: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        tune(self._socket)
        self._reply = np.empty((rows_max, dim), dtype=np.float32)

    def gather(self, addresses: Addresses) -> Floats:
        """See PeerTable; the rows are overwritten by the next call."""
        return self._call(_HEADER.pack(0, addresses.size), [addresses], addresses.size)

    def pool(self, offsets: Offsets, addresses: Addresses, weights: Floats) -> Floats:
        """See PeerTable; the sums are overwritten by the next call."""
        tokens = offsets.size - 1
        return self._call(_HEADER.pack(tokens, addresses.size), [addresses, offsets, weights], tokens)

    def close(self) -> None:
        self._socket.close()

    def _call(self, header: bytes, arrays: list[NDArray[Any]], rows: int) -> Floats:
        self._socket.sendall(header)
        for array in arrays:
            self._socket.sendall(array.data.cast("B"))
        return receive(self._socket, self._reply[:rows])


def start_peer_table(spec: TableSpec, rows_max: int) -> Any:
    """The actor, started with the threads a shard has; replies may have `rows_max` rows."""
    options = {"num_cpus": 1, "runtime_env": {"env_vars": kernel_environment(1)}}
    return ray.remote(PeerTable).options(**options).remote(spec, rows_max)


def tune(connection: socket.socket) -> None:
    """No waiting for more to send, and large buffers."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        connection.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BYTES)


def receive(connection: socket.socket, into: NDArray[Any]) -> NDArray[Any]:
    """Fill a contiguous array from a socket."""
    left = into.data.cast("B")
    while left:
        count = connection.recv_into(left)
        if count == 0:
            raise ConnectionError("the other side of the socket has gone")
        left = left[count:]
    return into
