"""What the workers' tests share: one small corpus, one Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tests.small_job import small_corpus
from workers.ray_cluster import start_embedded_ray


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_corpus(tmp_path_factory.mktemp("addresses"))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One embedded Ray for all tests that need it, started as `pkm train` starts it."""
    start_embedded_ray(room=5)
    yield
    ray.shutdown()
