"""The errors that users of pkm see.

One short hierarchy. A message is one sentence: the value that was found, what is allowed, and what to do.
"""

from __future__ import annotations


class PkmError(Exception):
    """Base of every error that pkm raises on purpose."""


class UsageError(PkmError):
    """A person gave something that can't be used: a job file, an argument, a text. The CLI exits with 2."""


class StoreError(PkmError):
    """A shard refused a request, or could not be reached within its deadline."""


class ShardUnreachableError(StoreError):
    """A shard could not be asked, or its answer was lost on the way: it may have done what it was asked or not."""


class FencedError(StoreError):
    """The request came from a writer whose successor has taken over; it changed nothing and must not be
    retried.
    """


class NonFiniteGradientError(StoreError):
    """A gradient held NaN or infinity; the step was refused and no row was touched."""


class SupersededError(StoreError):
    """Another process has taken this shard over; this one must end, and has acknowledged nothing since."""


class LogError(PkmError):
    """A log of a shard is damaged; the message names the file and the place in it."""


class CutError(PkmError):
    """A cut (checkpoint) is incomplete or damaged; the message names the file."""


def error_named(kind: str, message: str) -> PkmError:
    """The error of class `kind` with `message`, as it came from another process; StoreError if there is no such class."""
    found = globals().get(kind)
    if isinstance(found, type) and issubclass(found, PkmError):
        return found(message)
    return StoreError(message)
