"""What can be known to go wrong before anything starts: no corpus, no device, no room for the table.

Light to import, so that a mistake is told at once, and before a run folder is made.
"""

from __future__ import annotations

import os

from memory_store.errors import UsageError
from memory_store.traces import check_installed
from workers.corpus import open_corpus
from workers.job_spec import JobSpec


def check_job(job: JobSpec) -> None:
    """Raises UsageError for a job that can't run on this machine."""
    check_corpus(job)
    check_traces(job)
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if job.table_bytes() > memory_bytes:
        raise UsageError(
            f"The value table needs {job.table_bytes() / 2**30:.1f} GiB and this machine has "
            f"{memory_bytes / 2**30:.1f} GiB; use fewer sub_keys, a smaller dim, bfloat16 values or an optimizer "
            "with less state."
        )
    if job.train.device == "cuda" or job.train.precision == "bfloat16":
        _check_cuda(job)
    _check_compiler(job)
    if job.device_bytes():
        _check_device_memory(job)


def check_corpus(job: JobSpec) -> None:
    """Raises UsageError for a job without a text to train on."""
    tokens = open_corpus(job.data.corpus).tokens("train").size
    if tokens <= job.data.sequence_length:
        raise UsageError(
            f"The training text of {job.data.corpus} has {tokens} tokens, fewer than one sequence of "
            f"{job.data.sequence_length}; give more text or shorter sequences."
        )


def check_traces(job: JobSpec) -> None:
    """Raises UsageError for a job that is to be traced where that can't be."""
    if job.train.trace_every:
        check_installed()


def _check_cuda(job: JobSpec) -> None:
    import torch

    if not torch.cuda.is_available():
        setting = "device: cuda" if job.train.device == "cuda" else "precision: bfloat16"
        raise UsageError(
            f"train.{setting} needs a CUDA device, and none is usable here; use device: auto and precision: float32."
        )


def _check_compiler(job: JobSpec) -> None:
    if not job.train.compile and (job.memory is None or job.train.device == "cpu"):
        return
    import torch

    from workers.compiled_blocks import check_compiler
    from workers.gpu.compilation import kernels_run_on

    on_cpu = job.train.device == "cpu" or not torch.cuda.is_available()
    device = torch.device("cpu" if on_cpu else "cuda")
    if job.train.compile or (not on_cpu and kernels_run_on(device)):
        check_compiler(device)


def _check_device_memory(job: JobSpec) -> None:
    import torch

    if job.train.device == "cpu" or not torch.cuda.is_available():
        return
    _, device_bytes = torch.cuda.mem_get_info()
    if job.device_bytes() > device_bytes:
        raise UsageError(
            f"memory.placement puts {job.device_bytes() / 2**30:.1f} GiB on a device of {device_bytes / 2**30:.1f} GiB; "
            "use placement host, or cached with fewer cached_rows."
        )
