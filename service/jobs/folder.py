"""The folder of a service: what it keeps, and what its jobs read and write. All of it is its owner's alone.

jobs.sqlite     the jobs (database.py)
token           the token of the owner, who asks from this machine
page            the address of the page, for `pkm ui` on this machine
ray-token       the token of the Ray that the service has started, and ...
ray.json        ... where that is (ray_head.py)
scrape/         for a Prometheus: the token that lets it in, and the authorities of what it finds at /targets
data/TENANT     the corpora of a tenant, and data/shared those of all
runs/TENANT/ID  the run folders of jobs (workers/run_folder.py)
"""

from __future__ import annotations

from pathlib import Path

from memory_store.errors import UsageError
from service.jobs.job import Job
from workers.run_folder import RunFolder

SHARED = "shared"


class ServiceFolder:
    """The files under `path`, which is made if need be. `shared` are the corpora of all, elsewhere if given.

    Raises UsageError if the folder can't be made.
    """

    def __init__(self, path: Path, shared: Path | None = None) -> None:
        self.path = path.absolute()
        self.database = self.path / "jobs.sqlite"
        self.token = self.path / "token"
        self.page = self.path / "page"
        self.ray_token = self.path / "ray-token"
        self.ray_head = self.path / "ray.json"
        self.scrape_token = self.path / "scrape" / "token"
        self.scrape_authorities = self.path / "scrape" / "authorities.pem"
        self._data, self._runs = self.path / "data", self.path / "runs"
        self._shared = (shared or self._data / SHARED).absolute()
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._data.mkdir(exist_ok=True)
            self._runs.mkdir(exist_ok=True)
            self.scrape_token.parent.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise UsageError(f"The folder {path} can't be made: {error.strerror}.") from None

    def data_of(self, tenant: str) -> tuple[Path, Path]:
        """Where the corpora lie that a tenant may read: his own, and those of all."""
        return self._data / tenant, self._shared

    def corpus(self, tenant: str, given: Path) -> Path:
        """A corpus that a tenant may read, wherever links lead. Raises UsageError for any other place."""
        try:
            found = given.resolve()
        except (OSError, RuntimeError, ValueError):
            found = None
        roots = [folder.resolve() for folder in self.data_of(tenant)]
        if found is None or not any(found.is_relative_to(root) for root in roots):
            raise UsageError(
                f"data.corpus is {str(given)[:200]!r}; a job of this service reads from {roots[0]} or {roots[1]}."
            )
        return found

    def run(self, tenant: str, job_id: str) -> RunFolder:
        """The run folder of a job."""
        return RunFolder(self._runs / tenant / job_id)

    def run_of(self, job: Job) -> RunFolder:
        """The run folder of a job that is known."""
        return self.run(job.tenant, job.id)
