"""A tenant who asks a service for all that he can, until standard input ends.

    python -m benchmarks.flood PORT

A tenant of job_server.py keeps IN_FLIGHT calls open, and sends the next as soon as one is answered or refused. Prints a line
when all are open.
"""

from __future__ import annotations

import asyncio
import os
import sys

import grpc.aio

from benchmarks.job_server import FLOODER_TOKEN
from service.jobs.api import SERVICE
from service.jobs.tokens import bearer

IN_FLIGHT = 10_000
_CONNECTIONS = 20
_METHODS = ("List", "Cluster")
_NICENESS = 19  # he has machines of his own: his part of the work is not to be taken from the service


async def flood(port: int) -> None:
    own_connection = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", own_connection) for _ in range(_CONNECTIONS)]

    async def ask(number: int) -> None:
        method = _METHODS[number % len(_METHODS)]
        call = channels[number % _CONNECTIONS].unary_unary(f"/{SERVICE.full_name}/{method}")
        while True:
            try:
                await call(b"", metadata=[bearer(FLOODER_TOKEN)])
            except grpc.aio.AioRpcError as error:
                if error.code() == grpc.StatusCode.UNAVAILABLE:  # the service has ended
                    return

    asking = [asyncio.create_task(ask(number)) for number in range(IN_FLIGHT)]
    await asyncio.sleep(0)
    print(len(asking), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    os._exit(0)


if __name__ == "__main__":
    os.nice(_NICENESS)
    asyncio.run(flood(int(sys.argv[1])))
