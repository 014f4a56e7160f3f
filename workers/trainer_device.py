"""The GPU of a trainer: one for each, several on a host, as Ray has given them out.

A trainer's process keeps to the cores beside its GPU, so that what it makes page-locked lies in the memory beside it too.
Not so with store.carrier in_process: there the trainer shares a process, and threads, with shards that use all cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from memory_store.numa import keep_beside_device


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


def take_device(device: torch.device) -> None:
    """Make a trainer's own device the one that its process uses, from the cores beside it if it is a GPU."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        place: Any = torch.cuda.get_device_properties(device)  # whose types torch does not tell in full
        if hasattr(place, "pci_domain_id"):  # not in older torch
            keep_beside_device(
                f"{place.pci_domain_id:04x}:{place.pci_bus_id:02x}:{place.pci_device_id:02x}.0"
            )
