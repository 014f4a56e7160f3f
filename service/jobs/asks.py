"""Calls that ask a job to end, to pause or to go on."""

from __future__ import annotations

from collections.abc import Callable

from memory_store.errors import UsageError
from protos import jobs_pb2 as pb
from service.jobs.database import JobDatabase, KeptJob
from service.jobs.turns import Turns
from service.jobs.wire import job_message

_REASON_MAX = 500


class Asks:
    """Notes in the database what is wanted of a job; the runner sees to it."""

    def __init__(self, database: JobDatabase, turns: Turns) -> None:
        self._database, self._turns = database, turns

    async def cancel(self, request: pb.AskRequest, tenant: str) -> pb.Job:
        return await self._ask(request, tenant, self._database.cancel)

    async def pause(self, request: pb.AskRequest, tenant: str) -> pb.Job:
        return await self._ask(request, tenant, self._database.pause)

    async def resume(self, request: pb.AskRequest, tenant: str) -> pb.Job:
        return await self._ask(request, tenant, self._database.resume)

    async def _ask(self, request: pb.AskRequest, tenant: str, ask: Callable[[str, str], KeptJob]) -> pb.Job:
        if len(request.reason) > _REASON_MAX:
            raise UsageError(
                f"The reason has {len(request.reason)} letters; it may have {_REASON_MAX}. Say it shorter."
            )

        def find_and_ask() -> KeptJob:
            return ask(self._database.find(tenant, request.id).id, request.reason)

        return job_message(await self._turns.take(tenant, find_and_ask))
