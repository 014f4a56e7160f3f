"""Entries grouped on the device, against those that the host groups."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from memory_store import in_process_store
from memory_store.grouping import group_by_address
from memory_store.placement import addresses_of
from tests.workers.gpu.histories import CPU, small_table
from workers.gpu.cached_table import CachedTable
from workers.gpu.entry_groups import group_entries


@pytest.mark.parametrize("entries", [0, 1, 2, 7, 1000])
@pytest.mark.parametrize("largest", [0, 3, 2**32 - 1])
def test_the_device_groups_as_the_host_does(entries: int, largest: int) -> None:
    addresses = np.random.default_rng(entries).integers(0, largest, entries, dtype=np.uint32, endpoint=True)
    expected = group_by_address(addresses)
    found = group_entries(torch.from_numpy(addresses.astype(np.int64)))
    distinct = int(found.distinct)
    assert distinct == expected.addresses.size
    assert found.addresses.numel() == entries
    narrow = found.addresses[:distinct].int().numpy().view(np.uint32)  # as it travels to the host
    assert narrow.tobytes() == expected.addresses.tobytes()
    assert found.starts[: distinct + 1].tolist() == expected.starts.tolist()
    assert found.order.tolist() == expected.order.tolist()
    assert found.group_of_entry.tolist() == expected.group_of_entry().tolist()


def test_the_device_knows_the_addresses_of_rows() -> None:
    spec = small_table()
    table = CachedTable(in_process_store([spec], 2), spec, 10, CPU)
    rows = torch.arange(spec.rows).view(-1, 4)
    assert table.addresses(rows).tolist() == addresses_of(rows.numpy(), spec.rows).tolist()
