"""Hosts with slow links, on one machine: a network namespace for each shard, and token buckets on every link.

The shards' namespaces and this process (the trainer) hang on one switch, a bridge in a namespace of its own, each by
a pair of virtual interfaces. Both ends of a pair have a token bucket (tc-tbf(8)), so every host has the set rate in
each direction. Cores are not limited: all hosts share those of the machine.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import Self

_SUBNET = "198.18.77"  # a range kept for benchmarks (RFC 2544)
_LATENCY = "50ms"
_PAUSE_S = 0.05


class LinksNotAllowedError(Exception):
    """Namespaces, virtual interfaces or token buckets can't be made here; the message says what failed."""


class LimitedLinks(AbstractContextManager["LimitedLinks"]):
    """`shards` hosts and a switch; this process is a host too. Raises LinksNotAllowedError."""

    def __init__(self, shards: int) -> None:
        _remove_leftovers()
        name = f"pkm{os.getpid()}"
        self._switch, self._uplink = f"{name}-switch", name
        self._hosts = [f"{name}-{shard}" for shard in range(shards)]
        try:
            self._build()
        except BaseException:
            self._remove()
            raise

    def address(self, shard: int) -> str:
        """Where that host can be reached."""
        return f"{_SUBNET}.{shard + 10}"

    def launcher(self, shard: int) -> list[str]:
        """What a command begins with that is to run on that host."""
        return ["ip", "netns", "exec", self._hosts[shard]]

    def processes(self, shard: int) -> list[int]:
        """Those that run on that host."""
        return _processes(self._hosts[shard])

    def kill(self, shard: int) -> None:
        """That host dies, with all that runs on it."""
        _kill(self._hosts[shard])

    def limit(self, bytes_per_second: float | None) -> None:
        """Set the rate of every link, in each direction; None: no limit."""
        ends = [(None, self._uplink), (self._switch, "trainer")]
        for shard, host in enumerate(self._hosts):
            ends += [(host, "eth0"), (self._switch, f"port{shard}")]
        for namespace, interface in ends:
            inside = [] if namespace is None else ["-n", namespace]
            if bytes_per_second is None:
                with suppress(LinksNotAllowedError):  # there may be none to remove
                    _run("tc", *inside, "qdisc", "del", "dev", interface, "root")
                continue
            # A full bucket passes at once whatever the rate: it must be small beside a message.
            burst = max(64 << 10, int(bytes_per_second / 1000))
            bucket = [
                "tbf",
                "rate",
                f"{8 * bytes_per_second:.0f}bit",
                "burst",
                f"{burst}b",
                "latency",
                _LATENCY,
            ]
            _run("tc", *inside, "qdisc", "replace", "dev", interface, "root", *bucket)

    def _build(self) -> None:
        switch = ["ip", "-n", self._switch]
        _run("ip", "netns", "add", self._switch)
        _run(*switch, "link", "add", "bridge", "type", "bridge")
        _run(*switch, "link", "set", "bridge", "up")
        _run(
            "ip",
            "link",
            "add",
            self._uplink,
            "type",
            "veth",
            "peer",
            "name",
            "trainer",
            "netns",
            self._switch,
        )
        _run(*switch, "link", "set", "trainer", "master", "bridge", "up")
        _run("ip", "addr", "add", f"{_SUBNET}.1/24", "dev", self._uplink)
        _run("ip", "link", "set", self._uplink, "up")
        for shard, host in enumerate(self._hosts):
            inside, port = ["ip", "-n", host], f"port{shard}"
            _run("ip", "netns", "add", host)
            _run(*inside, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", self._switch)
            _run(*switch, "link", "set", port, "master", "bridge", "up")
            _run(*inside, "addr", "add", f"{self.address(shard)}/24", "dev", "eth0")
            _run(*inside, "link", "set", "eth0", "up")
            _run(*inside, "link", "set", "lo", "up")

    def _remove(self) -> None:
        for namespace in (*self._hosts, self._switch):
            _remove_namespace(namespace)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()


def _remove_leftovers() -> None:
    """End what processes that were killed have left behind."""
    for line in _run("ip", "netns", "list").splitlines():
        of_process = re.fullmatch(r"pkm(\d+)-.+", line.split()[0])
        if of_process is not None and not os.path.exists(f"/proc/{of_process[1]}"):
            _remove_namespace(of_process[0])


def _remove_namespace(namespace: str) -> None:
    """End all that runs there. A namespace takes its interfaces, and their peers, with it."""
    with suppress(LinksNotAllowedError):
        _kill(namespace)
        _run("ip", "netns", "del", namespace)


def _kill(namespace: str) -> None:
    while left := _processes(namespace):
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(_PAUSE_S)


def _processes(namespace: str) -> list[int]:
    return [int(process) for process in _run("ip", "netns", "pids", namespace).split()]


def _run(*command: str) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError:
        raise LinksNotAllowedError(f"there is no command {command[0]!r} (install iproute2)") from None
    except subprocess.CalledProcessError as error:
        raise LinksNotAllowedError(f"`{' '.join(command)}` failed: {error.stderr.strip()}") from None
