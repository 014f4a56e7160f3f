"""A TCP proxy between a client and a shard that cuts, swallows and delays what passes, on command, and counts what it did."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter
from typing import Literal

Fault = Literal["refuse", "cut before", "cut inside", "hold answer", "swallow", "delay"]
_PIECE = 1 << 16
DELAY_S = 0.05
_INSIDE_BYTES = 2000


class CuttingProxy:
    """Listens on a port of its own for connections to `target` (host:port).

    `arm` sets what happens from now on:
    refuse       new connections are closed at once
    cut before   the connection is cut when the next bytes come from the client; they don't reach the target
    cut inside   the connection is cut after some of the next bytes have reached the target
    hold answer  bytes from the target are held back, until `cut`
    swallow      bytes of both sides vanish, the connection stays
    delay        every piece is held for DELAY_S
    `fired` counts how often each has happened.
    """

    def __init__(self, target: str) -> None:
        host, port = target.rsplit(":", 1)
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.fired: Counter[str] = Counter()
        self._fault: Fault | None = None
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, fault: Fault | None) -> None:
        """What happens from now on; None: nothing."""
        self._fault = fault

    def cut(self) -> None:
        """Cut all connections."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                _close(end)

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._fault == "refuse":
                self.fired["refuse"] += 1
                _close(client)
                continue
            try:
                shard = socket.create_connection(self._target)
            except OSError:
                _close(client)
                continue
            self._pairs.append((client, shard))
            for source, target, from_client in ((client, shard, True), (shard, client, False)):
                threading.Thread(target=self._pass, args=(source, target, from_client), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, from_client: bool) -> None:
        try:
            while piece := source.recv(_PIECE):
                self._pass_piece(piece, target, from_client)
        except OSError:
            pass
        _close(source)
        _close(target)

    def _pass_piece(self, piece: bytes, target: socket.socket, from_client: bool) -> None:
        match self._fault:
            case "cut before" if from_client:
                self._once("cut before")
            case "cut inside" if from_client:
                target.sendall(piece[:_INSIDE_BYTES])
                if len(piece) > _INSIDE_BYTES:
                    self._once("cut inside")
            case "hold answer" if not from_client:
                self.fired["hold answer"] += 1
                while self._fault == "hold answer":
                    time.sleep(0.005)
                raise OSError
            case "swallow":
                self.fired["swallow"] += 1
            case "delay":
                self.fired["delay"] += 1
                time.sleep(DELAY_S)
                target.sendall(piece)
            case _:
                target.sendall(piece)

    def _once(self, fault: str) -> None:
        self._fault = None
        self.fired[fault] += 1
        self.cut()
        raise OSError


def _close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
