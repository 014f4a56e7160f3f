"""The thread that writes a shard's log: while one sync runs the next records gather, and share the one after it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from memory_store.errors import SupersededError
from memory_store.log_records import LogRecord
from memory_store.step_log import StepLog

RETRY_S = 1.0

_log = logging.getLogger(__name__)


class LogWriter:
    """Writes what it is given, in order; `on_durable(count)` tells how many records outlive a crash by now.

    While the disk refuses a record (it is full), the record is tried again every second: lookups go on, and what would
    acknowledge the record waits. After a failed sync nobody knows what is on the disk, and after a takeover nothing
    may be acknowledged: `on_end(reason)` is called, and nothing is written any more. `timed` is entered round each sync.
    """

    def __init__(
        self,
        log: StepLog,
        on_durable: Callable[[int], None],
        on_end: Callable[[str], None],
        timed: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._log, self._timed = log, timed
        self._on_durable, self._on_end = on_durable, on_end
        self._changed = threading.Condition()
        self._queue: list[LogRecord] = []
        self._closed = False
        self.trouble = ""
        self._thread = threading.Thread(target=self._run, name="step-log", daemon=True)
        self._thread.start()

    def put(self, record: LogRecord) -> None:
        """Write `record` soon; its arrays must stay as they are until it is durable."""
        with self._changed:
            self._queue.append(record)
            self._changed.notify()

    def close(self) -> None:
        """Write what is left, and end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        durable = 0
        while records := self._taken():
            try:
                for record in records:
                    if not self._appended(record):
                        return
                with self._timed():
                    self._log.sync()
            except (OSError, SupersededError) as error:
                _log.critical("the log can't be written any more: %s", error)
                self._on_end(str(error))
                return
            durable += len(records)
            self._on_durable(durable)

    def _taken(self) -> list[LogRecord]:
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            records, self._queue = self._queue, []
            return records

    def _appended(self, record: LogRecord) -> bool:
        """Whether the record was written in the end; False if the log was closed while the disk refused it."""
        while True:
            try:
                self._log.append(record)
                self.trouble = ""
                return True
            except OSError as error:
                if not self.trouble:
                    _log.error("the log can't be written, trying on: %s", error)
                self.trouble = str(error)
            with self._changed:
                if self._changed.wait_for(lambda: self._closed, RETRY_S):
                    return False
