"""The last cut of a job whose files can't be reached here, fetched into a folder of this machine, as a run to evaluate.

What is there and equal is not fetched again, and what was fetched in part is gone on with. Every file is checked against the
SHA-256 that the service tells before it gets its name, and the manifest of the cut comes last: a cut is there whole or not
at all.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from memory_store.cuts import complete_cuts
from memory_store.durable_files import sha256_of
from memory_store.errors import StoreError
from service.client import Client, CutFile
from service.jobs.cut_files import CORPUS, check_name
from service.jobs.errors import JobConflictError
from workers.run_folder import RunFolder

_TRIES = 3

Fetching = Callable[[int, int], None]
"""Called with how many bytes have been fetched so far, and of how many."""


def cache_folder(server: str, job_id: str) -> Path:
    """Where the files of a job of a service are kept on this machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "pkm" / "runs" / re.sub(r"[^A-Za-z0-9.-]", "_", server) / job_id


def fetch_run(
    client: Client, job_id: str, folder: Path, fetching: Fetching = lambda done, total: None
) -> RunFolder:
    """The job as a run in `folder`, with its last cut and the text that is held out, but nothing else.

    Raises NoSuchJobError; JobConflictError if it has no cut yet; ServerUnreachableError; StoreError if a file is damaged.
    """
    details = client.get(job_id)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    run = RunFolder(folder)
    data = details.spec.data.model_copy(update={"corpus": folder / CORPUS})
    with _alone(folder):
        for tries_left in reversed(range(_TRIES)):
            try:
                files = client.cut_files(details.job.id)
                _fetch(client, details.job.id, files, folder, fetching)
                break
            except JobConflictError:  # a newer cut has taken the place of this one
                if not tries_left:
                    raise
        run.save_job(details.spec.model_copy(update={"data": data}))
        fetched = (folder / files[-1].name).parent
        for cut in run.cuts_path.iterdir():
            if cut != fetched:
                shutil.rmtree(cut)
        assert complete_cuts(run.cuts_path) == [fetched], "the manifest came last"
    return run


def _fetch(client: Client, job_id: str, files: Sequence[CutFile], folder: Path, fetching: Fetching) -> None:
    missing = [file for file in files if not _is_here(folder / check_name(file.name), file)]
    total = sum(file.bytes for file in missing)
    before = 0
    fetching(0, total)
    for file in missing:
        for done in _fetch_file(client, job_id, file, folder / file.name):
            fetching(before + done, total)
        before += file.bytes


def _fetch_file(client: Client, job_id: str, file: CutFile, path: Path) -> Iterator[int]:
    """Bring a file here; how many of its bytes are here, again and again."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "ab", opener=_for_its_owner) as target:
        found = target.tell()
        for content in client.read_cut_file(job_id, file.name, offset=target.tell()):
            target.write(content)
            yield target.tell()
            if target.tell() > file.bytes:
                break
    if not _is_here(partial, file):
        partial.unlink()
        if not found:
            raise StoreError(f"{file.name} of job {job_id} is not what its checksum says; try again.")
        yield from _fetch_file(client, job_id, file, path)  # it was the beginning of another file
        return
    os.replace(partial, path)


def _is_here(path: Path, file: CutFile) -> bool:
    return path.is_file() and path.stat().st_size == file.bytes and sha256_of(path) == file.sha256


def _for_its_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time fetches into a folder."""
    lock = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
