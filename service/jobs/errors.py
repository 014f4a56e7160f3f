"""What can be wrong with a request about a job. The sentences are for people; none tells of another tenant's jobs."""

from __future__ import annotations

from memory_store.errors import PkmError, UsageError


class NoSuchJobError(PkmError):
    """No job of this tenant has this id, or an id that begins so. The CLI exits with 102."""


class JobConflictError(PkmError):
    """The job is in a state in which this can't be done, or a request id stands for another job already."""


class NeverFitsError(UsageError):
    """The job asks for more than the whole cluster has."""


class NotAllowedError(PkmError):
    """The token is missing, or the service does not know it. The CLI exits with 4."""


class ServerUnreachableError(PkmError):
    """The service does not answer. The CLI exits with 3."""


class ServiceError(PkmError):
    """The service failed; its log says why."""
