"""The service for training jobs, and the `pkm` command. Programs use `service.Client`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service.client import Client
    from service.jobs.states import JobState
    from service.profile import open_client
    from service.remote_run import fetch_run

__all__ = ["Client", "JobState", "fetch_run", "open_client"]


def __getattr__(name: str) -> Any:
    """Imported when they are asked for: most commands need none of them, and help should come at once."""
    if name == "Client":
        from service.client import Client

        return Client
    if name == "JobState":
        from service.jobs.states import JobState

        return JobState
    if name == "open_client":
        from service.profile import open_client

        return open_client
    if name == "fetch_run":
        from service.remote_run import fetch_run

        return fetch_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
