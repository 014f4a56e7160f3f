"""A cut of a store's tables alone, as a test writes it."""

from __future__ import annotations

from pathlib import Path

from memory_store.bucket_files import spec_as_json
from memory_store.client import StoreClient
from memory_store.cuts import Manifest, begin_cut, finish_cut


def write_cut(store: StoreClient, cuts: Path) -> Path:
    """Write a complete cut of all tables at the store's version; its folder."""
    folder = begin_cut(cuts, store.version)
    files = store.begin_cut(str(folder))()
    tables = tuple(spec_as_json(spec) for spec in store.specs.values())
    finish_cut(folder, Manifest(step=store.version, tables=tables, files=tuple(files)))
    return folder
