"""The traces of a trainer: a span for every n-th step, its parts, and each memory layer's exchange with the shards under it.

    step
      data, forward, backward, optimizer, commit
        lookup      in forward: from asking for rows to their sums; one for each memory layer and micro-batch
        gradients   in backward: from sending the sums' gradients to the gradients of the weights; likewise
          request ...   under each of these, and under commit (memory_store/traced_requests.py)

A step has one trace, in which every trainer has a step. The way of the row gradients, and the shards' work on a commit, go
on beside what the trainer does next: these requests may end after the span they were made in. Tables on the trainer's
device, whole or as copies, have no spans of lookups.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from opentelemetry.trace import Span, use_span
from opentelemetry.util.types import AttributeValue

from memory_store.calls import Waiting
from memory_store.client import StoreClient
from memory_store.kernels import FloatArray
from memory_store.lookups import Lookup
from memory_store.spans import Spans
from memory_store.table_handle import TableHandle
from memory_store.table_spec import TableSpec
from memory_store.traced_requests import TracedCarrier
from workers.ranks import Ranks
from workers.step_traces import StepTraces
from workers.tensor_tables import TensorTable
from workers.transformer import Transformer

_TRACE_BYTES = 16


class StepSpans(StepTraces):
    """Traces every `every`-th step of the trainer that trains `model` with `store`; all trainers must begin this together."""

    def __init__(
        self, spans: Spans, every: int, ranks: Ranks, model: Transformer, store: StoreClient | None
    ) -> None:
        self._spans, self._every, self._rank = spans, every, ranks.rank
        self._run = ranks.from_leader(secrets.randbits(62))
        self._innermost: Span | None = None
        if store is not None:
            store.send_through(lambda shard, carrier: TracedCarrier(shard, carrier, spans))
            for number, layer in enumerate(model.blocks(), 1):
                # What layers look up on their device asks no shard: its time is in forward and backward.
                if layer.memory is not None and not isinstance(layer.memory.table, TensorTable):
                    layer.memory.table = _TracedTable(self, store, layer.memory.table.spec, number)

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        if step % self._every:
            yield
            return
        about = {"pkm.step": step, "pkm.trainer": self._rank}
        span = self._spans.begin_trace(self._trace(step), "step", about)
        with self._under(span):
            yield

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        span = self.begin(name)
        if span is None:
            yield
            return
        with self._under(span):
            yield

    def begin(self, name: str, about: Mapping[str, AttributeValue] | None = None) -> Span | None:
        """A span under the part of the step that is under way, in whatever thread; None where no step is traced."""
        return self._spans.begin(self._innermost, name, about) if self._innermost is not None else None

    @contextmanager
    def _under(self, span: Span) -> Iterator[None]:
        outer, self._innermost = self._innermost, span
        try:
            with use_span(span, end_on_exit=True):
                yield
        finally:
            self._innermost = outer

    def _trace(self, step: int) -> int:
        """The trace of a step: the same at all trainers, and another when the step is made once more."""
        digest = hashlib.sha256(f"{self._run}/{step}".encode()).digest()
        return int.from_bytes(digest[:_TRACE_BYTES], "big")


class _TracedTable(TableHandle):
    """The table of the memory in layer number `layer`."""

    def __init__(self, traces: StepSpans, store: StoreClient, spec: TableSpec, layer: int) -> None:
        super().__init__(store, spec)
        self._traces, self._store, self._layer = traces, store, layer

    def begin_lookup(
        self, rows: NDArray[np.int64], weights: FloatArray, *, keep: bool, track: bool = False
    ) -> Waiting[Lookup]:
        about: dict[str, AttributeValue] = {
            "pkm.table": self.name,
            "pkm.layer": self._layer,
            "pkm.rows": rows.size,
        }
        span = self._traces.begin("lookup", about)
        if span is None:
            return super().begin_lookup(rows, weights, keep=keep, track=track)
        span.set_attribute("pkm.in_place", self._store.reads_in_place and not track)
        with use_span(span):
            waiting = super().begin_lookup(rows, weights, keep=keep, track=track)

        def finish() -> Lookup:
            with use_span(span, end_on_exit=True):
                found = waiting()
                span.set_attribute("pkm.bytes", found.output.nbytes)
            return _TracedLookup(found, self._traces, about)

        return finish


class _TracedLookup:
    """A lookup whose backward pass has a span too."""

    def __init__(self, lookup: Lookup, traces: StepSpans, about: Mapping[str, AttributeValue]) -> None:
        self.output = lookup.output
        self._lookup, self._traces, self._about = lookup, traces, about

    def begin_backward(self, output_gradient: FloatArray) -> Waiting[FloatArray]:
        span = self._traces.begin("gradients", {**self._about, "pkm.bytes": output_gradient.nbytes})
        if span is None:
            return self._lookup.begin_backward(output_gradient)
        with use_span(span):
            waiting = self._lookup.begin_backward(output_gradient)

        def finish() -> FloatArray:
            with use_span(span, end_on_exit=True):
                return waiting()

        return finish

    def backward(self, output_gradient: FloatArray) -> FloatArray:
        return self.begin_backward(output_gradient)()
