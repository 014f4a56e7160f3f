"""What the page asks, as JSON: the same answers as those of protos/jobs.proto, from the same objects, for the same tenants.

GET  /api/jobs                     ?state= (may be given again) &name= &page_size= &page=     jobs, the newest first
GET  /api/jobs/ID                  ?changes_seen=   job, new changes, progress, load of the shards
GET  /api/jobs/ID/spec             what was submitted
GET  /api/jobs/ID/metrics          ?after_step= &limit=   records of steps
GET  /api/jobs/ID/events           ?since=          what else has happened (workers/events.py)
GET  /api/jobs/ID/cuts             checkpoints
GET  /api/jobs/ID/map              ?of=training (reads of the last steps) or held-out (weight on the test text) &side=
POST /api/jobs/ID/cancel           also pause, resume; {"reason": ""}
GET  /api/cluster                  what the cluster has, and what is taken

`changes_seen`, `after_step` and `since` are how far the asker has come: who has lost the connection goes on from there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from memory_store.errors import UsageError
from protos import jobs_pb2 as pb
from service.jobs.api import JobApi
from service.jobs.states import JobState
from service.jobs.wire import change_of, job_of, load_of, progress_of, resources_of, state_message
from service.web.maps import read_map
from workers.events import read_events
from workers.run_folder import RunFolder

TENANT = web.RequestKey("tenant", str)
_METRICS_MAX = 5000
_STEP_MAX = 2**53
_Asked = TypeVar("_Asked", bound=BaseModel)


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _List(_Request):
    state: list[JobState] = []
    name: str = Field("", max_length=200)
    page_size: int = Field(100, ge=1, le=1000)
    page: str = ""


class _Look(_Request):
    changes_seen: int = Field(0, ge=0, lt=2**32)


class _Metrics(_Request):
    after_step: int = Field(0, ge=0, le=_STEP_MAX)
    limit: int = Field(_METRICS_MAX, ge=1, le=_METRICS_MAX)


class _Events(_Request):
    since: float = Field(0.0, ge=0, allow_inf_nan=False)


class _Map(_Request):
    of: str = Field("training", pattern="^(training|held-out)$")
    side: int = Field(1024, ge=16, le=1024)


class _Wish(_Request):
    reason: str = ""


class PageCalls:
    """Answers over the views and asks of `api`."""

    def __init__(self, api: JobApi) -> None:
        self._views, self._asks = api.views, api.asks

    def routes(self) -> list[web.RouteDef]:
        """All calls."""
        job = r"/api/jobs/{id:[A-Za-z0-9_-]{1,64}}"
        return [
            web.get("/api/jobs", self._list),
            web.get("/api/cluster", self._cluster),
            web.get(job, self._look),
            web.get(f"{job}/spec", self._spec),
            web.get(f"{job}/metrics", self._metrics),
            web.get(f"{job}/events", self._events),
            web.get(f"{job}/cuts", self._cuts),
            web.get(f"{job}/map", self._map),
            web.post(f"{job}/cancel", self._asking(self._asks.cancel)),
            web.post(f"{job}/pause", self._asking(self._asks.pause)),
            web.post(f"{job}/resume", self._asking(self._asks.resume)),
        ]

    async def _list(self, request: web.Request) -> web.Response:
        asked = _read(_List, request.query)
        wanted = pb.ListRequest(
            states=map(state_message, asked.state),
            name=asked.name,
            page_size=asked.page_size,
            page_token=asked.page,
        )
        page = await self._views.page(wanted, request[TENANT])
        return _json({"jobs": [job_of(job) for job in page.jobs], "next_page": page.next_page_token})

    async def _look(self, request: web.Request) -> web.Response:
        wanted = pb.WatchRequest(id=_id(request), changes_seen=_read(_Look, request.query).changes_seen)
        async with aclosing(self._views.watch(wanted, request[TENANT])) as updates:
            update = await anext(updates)
        return _json(
            {
                "job": job_of(update.job),
                "changes": [change_of(change) for change in update.changes],
                "changes_seen": update.changes_seen,
                "progress": progress_of(update.progress) if update.HasField("progress") else None,
                "shards": [load_of(load) for load in update.shards],
            }
        )

    async def _spec(self, request: web.Request) -> web.Response:
        details = await self._views.get(pb.JobRequest(id=_id(request)), request[TENANT])
        return _as_is(details.spec)

    async def _metrics(self, request: web.Request) -> web.Response:
        asked = _read(_Metrics, request.query)
        wanted = pb.MetricsRequest(id=_id(request), after_step=asked.after_step, limit=asked.limit)
        page = await self._views.metrics(wanted, request[TENANT])
        more = "true" if page.more else "false"
        return _as_is(f'{{"records":[{",".join(page.records)}],"more":{more}}}')

    async def _events(self, request: web.Request) -> web.Response:
        run, since = await self._run(request), _read(_Events, request.query).since
        events = await asyncio.to_thread(read_events, run.events_path, since)
        return _json({"events": [event for event in events if event.time > since]})

    async def _cuts(self, request: web.Request) -> web.Response:
        found = await self._views.cuts(pb.JobRequest(id=_id(request)), request[TENANT])
        cuts = [{"step": cut.step, "written_at": cut.written_at, "bytes": cut.bytes} for cut in found.cuts]
        return _json({"cuts": cuts})

    async def _map(self, request: web.Request) -> web.Response:
        """float32 `[side, side]`, little-endian, with what it shows in headers; 304 if the asker has it already."""
        run, asked = await self._run(request), _read(_Map, request.query)
        found = await asyncio.to_thread(read_map, run, asked.of, asked.side)
        headers = {f"Map-{name}": str(value) for name, value in found.figures.items()}
        headers["ETag"] = found.tag
        if request.headers.get("If-None-Match") == found.tag:
            return web.Response(status=304, headers=headers)
        response = web.Response(body=found.pixels, content_type="application/octet-stream", headers=headers)
        response.enable_compression()
        return response

    async def _cluster(self, request: web.Request) -> web.Response:
        found = await self._views.cluster(pb.ClusterRequest(), request[TENANT])
        return _json(
            {
                "hosts": [resources_of(host) for host in found.hosts],
                "taken": resources_of(found.taken),
                "jobs_waiting": found.jobs_waiting,
                "jobs_active": found.jobs_active,
            }
        )

    def _asking(
        self, ask: Callable[[pb.AskRequest, str], Awaitable[pb.Job]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(request: web.Request) -> web.Response:
            wish = _read_body(_Wish, await request.read())
            job = await ask(pb.AskRequest(id=_id(request), reason=wish.reason), request[TENANT])
            return _json({"job": job_of(job)})

        return answer

    async def _run(self, request: web.Request) -> RunFolder:
        details = await self._views.get(pb.JobRequest(id=_id(request)), request[TENANT])
        return RunFolder(Path(details.run))


def _id(request: web.Request) -> str:
    return request.match_info["id"]


def _read(kind: type[_Asked], query: Any) -> _Asked:
    """The parameters of a request; one that may be given again is a list. Raises UsageError."""
    given: dict[str, Any] = {}
    for name in set(query.keys()):
        values = query.getall(name)
        field = kind.model_fields.get(name)
        given[name] = values if field is not None and isinstance(field.default, list) else values[-1]
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise UsageError(_sentence(error)) from None


def _read_body(kind: type[_Asked], body: bytes) -> _Asked:
    try:
        return kind.model_validate_json(body or b"{}")
    except ValidationError as error:
        raise UsageError(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"])) or "the request"
    return f"{name}: {first['msg']}."


def _json(content: object) -> web.Response:
    # NaN and infinity are no JSON.
    return _as_is(to_json(content, inf_nan_mode="null").decode())


def _as_is(text: str) -> web.Response:
    response = web.Response(text=text, content_type="application/json")
    response.enable_compression()
    return response
