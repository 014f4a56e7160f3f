"""Where the processes of all running jobs serve their metrics, as Prometheus' HTTP service discovery asks for it.

The processes write that into the scrape folders of their runs (workers/job_scrape.py). A shard that was killed and comes back
at another port is found there at the next look.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from memory_store.durable_files import replace_file
from service.jobs.database import JobDatabase, KeptJob
from service.jobs.folder import ServiceFolder
from service.jobs.states import WITH_DRIVER

_JOBS_MAX = 1000
_log = logging.getLogger(__name__)


class TargetGroup(BaseModel):
    """Addresses (host:port) and what they have in common; in the format of Prometheus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    targets: tuple[str, ...]
    labels: dict[str, str]


_GROUPS = TypeAdapter(tuple[TargetGroup, ...])


class Targets:
    """The targets of a service's jobs. `authority` (PEM) stands first among those that sign the targets' certificates, so
    that the file of them is never empty, which Prometheus would refuse."""

    def __init__(self, database: JobDatabase, folder: ServiceFolder, authority: bytes) -> None:
        self._database, self._folder, self._authority = database, folder, authority
        self._keep_authorities(())

    def page(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """`GET /targets`."""
        groups = [group.model_dump(mode="json") for group in self.groups()]
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(groups).encode()]

    def groups(self) -> list[TargetGroup]:
        """One group for each process that serves its metrics now."""
        jobs = self._database.newest(states=sorted(WITH_DRIVER), limit=_JOBS_MAX)
        # First: who has just learned of a target must know who has signed its certificate.
        self._keep_authorities(jobs)
        return [group for job in jobs for group in self._of(job)]

    def _of(self, job: KeptJob) -> list[TargetGroup]:
        found = []
        for path in sorted(self._folder.run_of(job).scrape_path.glob("*.json")):
            try:
                groups = _GROUPS.validate_json(path.read_bytes())
            except FileNotFoundError:
                continue  # its process has just ended
            except (OSError, ValidationError) as error:
                _log.warning("job=%s %s can't be read: %s", job.id, path, error)
                continue
            named = {"job_id": job.id, "tenant": job.tenant}
            found += [group.model_copy(update={"labels": group.labels | named}) for group in groups]
        return found

    def _keep_authorities(self, jobs: Sequence[KeptJob]) -> None:
        known = [self._authority]
        for job in jobs:
            path = self._folder.run_of(job).scrape_authority_path
            if path.is_file():
                known.append(path.read_bytes())
        content, kept = b"".join(known), self._folder.scrape_authorities
        if not kept.exists() or kept.read_bytes() != content:
            replace_file(kept, content)
