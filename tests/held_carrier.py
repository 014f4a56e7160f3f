"""A carrier whose requests of chosen kinds are under way until the test lets them arrive."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from memory_store import messages as m
from memory_store.shard_host import ShardHost


class _Answer(Future[m.Reply]):
    """Fails who waits for it too early, in place of letting them wait for ever."""

    def __init__(self, request: m.Request) -> None:
        super().__init__()
        self._request = type(request).__name__

    def result(self, timeout: float | None = None) -> m.Reply:
        assert self.done(), f"somebody waits for the answer to {self._request}"
        return super().result(timeout)


class HeldCarrier:
    """Reaches the shard in `host`; `log` has the kind of every request, in the order they were sent.

    Requests of the kinds in `held` arrive when `release` is called, the others at once.
    """

    def __init__(self, host: ShardHost, *held: type[Any]) -> None:
        self.log: list[str] = []
        self._host, self._held = host, held
        self._under_way: list[tuple[m.Request, _Answer]] = []

    def submit(self, request: m.Request, timeout_s: float) -> Future[m.Reply]:
        self.log.append(type(request).__name__)
        answer = _Answer(request)
        if isinstance(request, self._held):
            self._under_way.append((request, answer))
        else:
            self._arrive(request, answer)
        return answer

    def release(self) -> None:
        """Let all arrive that are under way."""
        for request, answer in self._under_way:
            self._arrive(request, answer)
        self._under_way.clear()

    def _arrive(self, request: m.Request, answer: _Answer) -> None:
        def pass_on(done: Future[m.Reply]) -> None:
            error = done.exception()
            if error is None:
                answer.set_result(done.result())
            else:
                answer.set_exception(error)

        self._host.submit(request).add_done_callback(pass_on)

    def close(self) -> None:
        """Nothing to close."""
