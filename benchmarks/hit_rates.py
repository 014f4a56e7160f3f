"""The `hit_rates` benchmark: how many of the rows that real text reads have a copy on the device (placement `cached`).

The quickstart's job (examples/quickstart.yaml) is trained on its text for 200 steps, with copies of a 64th, a 16th and a
quarter of its rows, and again with tables 16 and 64 times as large. Hits are counted as a job counts them: of the different
rows of a lookup, the share that had a fresh copy. Over the run, which begins without a copy; in the second half of its
steps, the steady state; and on the test text, in batches as large as those of training, with the copies that the last step
has left. Were rows read uniformly, the share of hits would be that of the rows with a copy.

None of this depends on where the device is, and copies change no byte of what is learned: the CPU is as good as a GPU, the
figures repeat exactly, and whatever has a copy, a table of one size is read alike. It takes about fifteen minutes on two
cores.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.results import BenchmarkRun, Recorder
from memory_store.shard_metrics import ShardMetrics
from service.job_file import load_job
from workers.batches import evaluation_batches
from workers.corpus import prepare_corpus
from workers.gpu.cached_table import CachedTable
from workers.gpu.row_cache import RowCache
from workers.job_spec import JobSpec
from workers.ranks import Ranks
from workers.report import read_records
from workers.run_folder import RunFolder
from workers.table_placement import store_in_process
from workers.training import Trainer

QUICKSTART, TEXT, VOCABULARY = Path("examples/quickstart.yaml"), Path("examples/data/sotu.parquet"), 4096


@dataclass(frozen=True)
class HitRatesSize:
    """The sub-keys of the tables, which parts of their rows have copies (1/64: 64), and the steps of every run."""

    sub_keys: tuple[int, ...]
    parts: tuple[int, ...]
    steps: int


FULL = HitRatesSize((128, 512, 1024), (64, 16, 4), 200)
QUICK = HitRatesSize((128,), (16,), 40)


def run(size: HitRatesSize, *, quick: bool) -> BenchmarkRun:
    """Train with every size of table and of cache."""
    recorder = Recorder("hit_rates", quick=quick)
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        prepare_corpus([TEXT], corpus, vocab_size=VOCABULARY)
        for sub_keys in size.sub_keys:
            for part in size.parts:
                settings = {
                    "data.corpus": str(corpus),
                    "memory.sub_keys": sub_keys,
                    "memory.placement": "cached",
                    "memory.cached_rows": sub_keys**2 // part,
                    "train.steps": size.steps,
                    "train.evaluate_every": size.steps,
                    "train.cut_every": size.steps,
                    "train.device": "cpu",
                    "store.shards": 1,
                    "store.carrier": "in_process",
                    "store.lookup": "fetch",
                }
                job = load_job(QUICKSTART, [f"{name}={value}" for name, value in settings.items()]).job
                _measure(recorder, job, Path(folder) / f"{sub_keys}-{part}")
    return recorder.finish()


def _measure(recorder: Recorder, job: JobSpec, folder: Path) -> None:
    """Train one job in `folder`, then let its model read the test text."""
    run, device = RunFolder(folder), torch.device("cpu")
    run.create(job)
    trainer = Trainer(job, run, Ranks(device=device), store_in_process(job, device, ShardMetrics()))
    trainer.train()
    (memory,) = trainer.model.memories().values()
    assert isinstance(memory.table, CachedTable)
    cache, rows = memory.table.cache, memory.table.rows
    case = {"rows": f"{rows:,}", "with a copy": f"1/{rows // cache.capacity}"}
    over_run = cache.found / cache.looked_up

    shares = [record.cache_hit_rate for record in read_records(run.metrics_path)]
    steady = [share for share in shares[len(shares) // 2 :] if share is not None]
    recorder.add("hits, over the run", "share", [over_run], **case)
    recorder.add("hits, second half of the run", "share", steady, **case)
    recorder.add("hits, test text", "share", _shares_of_test(trainer, cache), **case)
    recorder.add("hits, if rows were read uniformly", "share", [cache.capacity / rows], **case)


@torch.no_grad()
def _shares_of_test(trainer: Trainer, cache: RowCache) -> list[float]:
    """The share of hits in each batch of the test text. Accesses are not counted, as those lookups go to the shards."""
    job = trainer.job
    length = job.data.sequence_length
    trainer.model.eval()
    shares = []
    for inputs, _, mask in evaluation_batches(
        trainer.corpus.tokens("test"), length, job.train.batch_tokens // length
    ):
        found, looked_up = cache.found, cache.looked_up
        trainer.model(torch.from_numpy(inputs), torch.from_numpy(mask))
        shares.append((cache.found - found) / (cache.looked_up - looked_up))
    return shares
