"""The GPU of a trainer: one for each, several on a host, as Ray has given them out."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def own_device(gpu_ids: Sequence[int | str], visible: str | None) -> torch.device:
    """The device of a trainer that has got `gpu_ids` of Ray, where `visible` is CUDA_VISIBLE_DEVICES.

    As a rule Ray shows a process no other GPUs. A host may have forbidden that (RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES);
    then all trainers see all, and each must take its own.
    """
    if not gpu_ids:
        return torch.device("cpu")
    name = str(gpu_ids[0])
    if visible is None:
        return torch.device("cuda", int(name))
    seen = [part.strip() for part in visible.split(",")]
    return torch.device("cuda", seen.index(name) if name in seen else 0)
