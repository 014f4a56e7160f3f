"""Calls that read the files of a job: those from which its last cut is evaluated where the job's folder can't be reached.

A file is named `corpus/FILE` or `cuts/CUT/FILE`, and nothing else is read: names are of that form alone, folders and files
below the job's own are opened without following links, and the corpus is one that the job's tenant may read.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

from memory_store.cuts import MANIFEST, complete_cuts, read_manifest
from memory_store.errors import CutError, UsageError
from protos import jobs_pb2 as pb
from service.jobs.database import JobDatabase, KeptJob
from service.jobs.errors import JobConflictError
from service.jobs.folder import ServiceFolder
from service.jobs.turns import Turns
from workers.corpus import INFO_FILE, TOKENIZER_FILE, read_corpus_info, tokens_file
from workers.dense_state import OPTIMIZER
from workers.splits import HELD_OUT

PART_BYTES = 1 << 20
CORPUS, CUTS = "corpus", "cuts"
_CORPUS_FILES = (INFO_FILE, TOKENIZER_FILE, *map(tokens_file, HELD_OUT))
_NAME = re.compile(
    rf"{CORPUS}/({'|'.join(map(re.escape, _CORPUS_FILES))})|{CUTS}/step-\d{{8,12}}/[A-Za-z0-9_][A-Za-z0-9._-]{{0,199}}"
)


def check_name(name: str) -> str:
    """The name, if it is of a file from which a cut is evaluated. Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name[:200]!r} is no file from which a cut is evaluated; those have names such as {CORPUS}/{INFO_FILE}."
        )
    return name


class CutFiles:
    """Lists and reads the files of the jobs in `database`, whose folders are in `folders`."""

    def __init__(self, database: JobDatabase, folders: ServiceFolder, turns: Turns) -> None:
        self._database, self._folders, self._turns = database, folders, turns

    async def names(self, request: pb.JobRequest, tenant: str) -> pb.CutFileList:
        def read() -> pb.CutFileList:
            job = self._database.find(tenant, request.id)
            return pb.CutFileList(files=[*self._of_corpus(job), *self._of_cut(job)])

        return await self._turns.take(tenant, read)

    async def read(self, request: pb.ReadCutFileRequest, tenant: str) -> AsyncIterator[pb.CutFilePart]:
        job = await self._turns.take(tenant, self._database.find, tenant, request.id)
        name, offset = check_name(request.name), request.offset

        def part() -> bytes:
            with self._opened(job, name) as file:
                return os.pread(file, PART_BYTES, offset)

        while content := await self._turns.take(tenant, part):
            offset += len(content)
            yield pb.CutFilePart(content=content)

    def _of_corpus(self, job: KeptJob) -> Iterator[pb.CutFile]:
        yield self._described(job, f"{CORPUS}/{INFO_FILE}")
        for file in read_corpus_info(self._corpus(job)).files:
            if file.name in _CORPUS_FILES:
                yield pb.CutFile(name=f"{CORPUS}/{file.name}", bytes=file.size, sha256=file.sha256)

    def _of_cut(self, job: KeptJob) -> Iterator[pb.CutFile]:
        cuts = complete_cuts(self._folders.run_of(job).cuts_path)
        if not cuts:
            raise JobConflictError(
                f"job {job.id} has no complete cut yet; it must reach its first one (train.cut_every)"
            )
        folder = f"{CUTS}/{cuts[-1].name}"
        manifest_file = self._described(job, f"{folder}/{MANIFEST}")  # no link leads it elsewhere
        try:
            manifest = read_manifest(cuts[-1])
        except CutError:
            raise _gone(job, manifest_file.name) from None
        for entry in manifest.files:
            if entry.name != OPTIMIZER:
                yield pb.CutFile(
                    name=check_name(f"{folder}/{entry.name}"), bytes=entry.size, sha256=entry.sha256
                )
        yield manifest_file

    def _described(self, job: KeptJob, name: str) -> pb.CutFile:
        with self._opened(job, name) as file:
            size = os.fstat(file).st_size
            content = os.pread(file, size, 0)
        return pb.CutFile(name=name, bytes=size, sha256=hashlib.sha256(content).hexdigest())

    @contextmanager
    def _opened(self, job: KeptJob, name: str) -> Iterator[int]:
        """The descriptor of a file. Raises JobConflictError if there is no such file, or if it is reached through a link."""
        place, *rest = name.split("/")
        if place == CORPUS:
            root, parts = self._corpus(job), rest
        else:
            root, parts = self._folders.run_of(job).path, [place, *rest]
        try:
            file = _open_inside(root, parts)
        except OSError:
            raise _gone(job, name) from None
        try:
            yield file
        finally:
            os.close(file)

    def _corpus(self, job: KeptJob) -> Path:
        run = self._folders.run_of(job)
        if not run.exists():
            raise JobConflictError(f"job {job.id} has not started yet; it has no cut")
        return self._folders.corpus(job.tenant, run.load_job().data.corpus)


def _open_inside(root: Path, parts: list[str]) -> int:
    """The descriptor of a plain file below `root`. Raises OSError for anything else, and where a link is on the way."""
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    for part in parts:
        kind = os.O_NONBLOCK if part is parts[-1] else os.O_DIRECTORY  # a pipe is not waited for
        try:
            there = os.open(part, os.O_RDONLY | kind | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
        finally:
            os.close(here)
        here = there
    if not stat.S_ISREG(os.fstat(here).st_mode):
        os.close(here)
        raise OSError("no plain file")
    return here


def _gone(job: KeptJob, name: str) -> JobConflictError:
    return JobConflictError(f"job {job.id} has no file {name} any more; ask for its files again")
