"""Which GPU a trainer takes, as Ray and CUDA name them."""

from __future__ import annotations

import pytest
import torch

from workers.trainer_device import own_device


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
