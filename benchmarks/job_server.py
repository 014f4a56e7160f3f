"""A job service with nothing behind it but its database, in a process of its own, until its standard input ends.

    python -m benchmarks.job_server FOLDER

Prints its port. TENANT asks with TOKEN; another one, with FLOODER_TOKEN, for too much (flood.py).
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from service.jobs.api import JobApi
from service.jobs.collector import collect_rarely
from service.jobs.database import JobDatabase
from service.jobs.demand import GIB, Host
from service.jobs.folder import ServiceFolder
from service.jobs.server import start_server
from service.jobs.tokens import Tokens, digest_of

TENANT, TOKEN = "benchmark", "benchmark"
FLOODER, FLOODER_TOKEN = "flooder", "flooder"
DATABASE = "jobs.sqlite"
_GRACE_S = 10.0


async def serve(folder: Path) -> None:
    tokens = Tokens({digest_of(TOKEN): TENANT, digest_of(FLOODER_TOKEN): FLOODER})
    hosts = [Host(cpus=64, memory_bytes=64 * GIB)]
    database = JobDatabase(folder / DATABASE)
    api = JobApi(database, tokens, ServiceFolder(folder), lambda: hosts)
    server, port = await start_server(api, tokens, "127.0.0.1", 0, None)
    collect_rarely()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(_GRACE_S)  # those of a flood end with its connections
    database.close()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
