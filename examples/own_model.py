"""A product-key memory inside a model of your own, with a training loop of your own.

    python examples/own_model.py                                    the table lives in this process
    python examples/own_model.py host-1:50051 host-2:50051          the table lives in shards that run there

The task: remember which class each of 2000 random vectors belongs to. Running shards must hold a table
`memory` of 64 * 64 rows of width 32.
"""

import sys

import torch
from torch import nn

import memory_store
from memory_store import TableSpec
from workers.memory_layer import MemoryLayer

addresses = sys.argv[1:]
if addresses:
    store = memory_store.connect(addresses)
    store.take_over()  # this process is the only writer
else:
    store = memory_store.in_process_store([TableSpec("memory", rows=64 * 64, dim=32)])

torch.manual_seed(0)
memory = MemoryLayer(32, store.table("memory"), sub_keys=64, heads=2, k=8, query_dim=32)
model = nn.Sequential(nn.Linear(16, 32), memory, nn.Linear(32, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
vectors, classes = torch.randn(2000, 16), torch.randint(10, (2000,))

for step in range(101):
    chosen = torch.randint(2000, (256,))
    loss = nn.functional.cross_entropy(model(vectors[chosen]), classes[chosen])
    optimizer.zero_grad()
    loss.backward()  # leaves the gradients of the table's rows in the store
    optimizer.step()
    store.step({"memory": 3e-2})  # moves the rows that were read, and no others
    if step % 20 == 0:
        print(f"step {step:3d}  loss {loss.item():.3f}")
