"""Which GPU a trainer takes, as Ray and CUDA name them, and the cores beside it, which Linux names by its PCI address."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from workers import trainer_device
from workers.trainer_device import own_device, take_device


@pytest.mark.parametrize(
    ("gpu_ids", "visible", "device"),
    [
        ([], None, "cpu"),
        ([], "0,1", "cpu"),
        ([3], "3", "cuda:0"),  # Ray shows a trainer its own alone
        (["GPU-7ab"], "GPU-7ab", "cuda:0"),
        ([2], "0,1,2,3", "cuda:2"),  # it may show them all
        ([6], "4, 6", "cuda:1"),
        ([1], None, "cuda:1"),
    ],
)
def test_a_trainer_takes_its_own_gpu(gpu_ids: list[int | str], visible: str | None, device: str) -> None:
    assert own_device(gpu_ids, visible) == torch.device(device)


def test_a_trainer_keeps_to_the_cores_beside_the_gpu_that_it_has_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[object] = []
    places = {
        torch.device("cuda:0"): SimpleNamespace(pci_domain_id=0, pci_bus_id=0x3B, pci_device_id=0),
        torch.device("cuda:1"): SimpleNamespace(pci_domain_id=0x1A2B, pci_bus_id=0xC, pci_device_id=0x1F),
    }
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.cuda, "get_device_properties", places.__getitem__)
    monkeypatch.setattr(trainer_device, "keep_beside_device", taken.append)
    take_device(torch.device("cpu"))
    assert taken == []
    for device in places:
        take_device(device)
    first, second = places
    assert taken == [first, "0000:3b:00.0", second, "1a2b:0c:1f.0"]
