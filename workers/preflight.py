"""What can be known to go wrong before anything starts: no corpus, no device, no room for the table.

Light to import, so that a mistake is told at once, and before a run folder is made.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from memory_store.errors import UsageError
from memory_store.traces import check_installed
from workers.corpus import open_corpus
from workers.job_spec import JobSpec

if TYPE_CHECKING:
    import torch


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
    import torch

    on_cpu = job.train.device == "cpu" or not torch.cuda.is_available()
    check_device(job, torch.device("cpu" if on_cpu else "cuda"))


def check_cluster_job(job: JobSpec) -> None:
    """Raises UsageError for a job that can't run on any cluster; its trainers check their devices (`check_device`)."""
    check_corpus(job)
    check_traces(job)
    if job.train.precision == "bfloat16" and job.train.device != "cuda":
        raise UsageError(
            "train.precision bfloat16 needs CUDA, and on a cluster a job gets GPUs only if it asks for them: "
            "set train.device cuda, or precision float32."
        )


def check_device(job: JobSpec, device: torch.device) -> None:
    """Raises UsageError if a trainer can't use its device, for want of a compiler or of memory."""
    from workers.compiled_blocks import check_compiler
    from workers.gpu.compilation import kernels_run_on

    on_gpu = device.type == "cuda"
    if job.train.compile or (on_gpu and job.memory is not None and kernels_run_on(device)):
        check_compiler(device)
    if on_gpu and job.device_bytes():
        _check_device_memory(job, device)


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


def _check_device_memory(job: JobSpec, device: torch.device) -> None:
    import torch

    _, device_bytes = torch.cuda.mem_get_info(device)
    if job.device_bytes() > device_bytes:
        raise UsageError(
            f"memory.placement puts {job.device_bytes() / 2**30:.1f} GiB on a device of {device_bytes / 2**30:.1f} GiB; "
            "use placement host, or cached with fewer cached_rows."
        )
