"""The shell round a shard core: a lock, tickets and futures, and the files of cuts.

All carriers end here. The core is entered by one thread at a time; a request that must wait gives its thread
back a future that a later request completes. Reading and writing cuts is done here, because the core knows no
files.
"""

from __future__ import annotations

import json
import threading
from concurrent.futures import Future
from pathlib import Path

from memory_store import messages as m
from memory_store.bucket_files import check_buckets, read_buckets, write_buckets
from memory_store.cuts import MANIFEST, read_manifest
from memory_store.errors import CutError, PkmError, StoreError
from memory_store.shard import Answer, ShardCore


class ShardHost:
    """One shard, usable from many threads."""

    def __init__(self, core: ShardCore) -> None:
        self._core = core
        self._lock = threading.Lock()
        self._tickets = 0
        self._futures: dict[int, Future[m.Reply]] = {}

    def submit(self, request: m.Request) -> Future[m.Reply]:
        """Hand a request to the shard. The future may complete later, or hold a PkmError."""
        with self._lock:
            self._tickets += 1
            ticket = self._tickets
            future: Future[m.Reply] = Future()
            self._futures[ticket] = future
            answers = self._handle(ticket, request)
            due = [(self._futures.pop(answer.ticket, None), answer.reply) for answer in answers]
        for waiting, reply in due:
            if waiting is None or not waiting.set_running_or_notify_cancel():
                continue
            if isinstance(reply, PkmError):
                waiting.set_exception(reply)
            else:
                waiting.set_result(reply)
        return future

    def call(self, request: m.Request, timeout_s: float) -> m.Reply:
        """Serve a request, waiting at most `timeout_s`.

        Raises StoreError when the time is over, or what the shard raised.
        """
        future = self.submit(request)
        try:
            return future.result(timeout_s)
        except TimeoutError:
            if not self.abandon(future):
                return future.result()
            raise StoreError(
                f"Shard {self._core.shard} could not answer {type(request).__name__} within {timeout_s:g} s: "
                f"it is at version {self._core.version} and waits for the other writers."
            ) from None

    def abandon(self, future: Future[m.Reply]) -> bool:
        """Forget a request that nobody waits for any more; False if its answer is due already."""
        with self._lock:
            for ticket, waiting in self._futures.items():
                if waiting is future:
                    del self._futures[ticket]
                    self._core.abandon(ticket)
                    return True
        return False

    def _handle(self, ticket: int, request: m.Request) -> list[Answer]:
        try:
            match request:
                case m.WriteCut():
                    return [Answer(ticket, self._write_cut(request))]
                case m.LoadCut():
                    return [Answer(ticket, self._load_cut(request)), *self._core.answer_waiting()]
                case _:
                    return self._core.handle(ticket, request)
        except PkmError as error:
            return [Answer(ticket, error)]
        except OSError as error:
            return [Answer(ticket, StoreError(f"Shard {self._core.shard} could not use its files: {error}."))]
        except BaseException:
            del self._futures[ticket]
            raise

    def _write_cut(self, request: m.WriteCut) -> m.CutWritten:
        core = self._core
        core.check_sender(request.sender)
        if core.version != request.step:
            raise StoreError(f"A cut of step {request.step} was asked for; the tables are at {core.version}.")
        if (Path(request.folder) / MANIFEST).exists():
            raise CutError(f"{request.folder} is a complete cut already; nothing was written over.")
        files = [write_buckets(Path(request.folder), part, core.shard) for part in core.tables.values()]
        return m.CutWritten(json.dumps([file.model_dump(mode="json") for file in files]))

    def _load_cut(self, request: m.LoadCut) -> m.Done:
        core = self._core
        core.check_sender(request.sender)
        folder = Path(request.folder)
        manifest = read_manifest(folder)
        parts = list(core.tables.values())
        files = [check_buckets(folder, manifest, part) for part in parts]
        core.begin_replacing()
        for part, entries in zip(parts, files, strict=True):
            read_buckets(folder, entries, part)
            part.clear_accesses()
        core.reset_version(manifest.step)
        return m.Done(duplicate=False)
