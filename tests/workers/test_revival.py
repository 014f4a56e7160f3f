"""Revival of dead sub-keys: who takes after whom, the bytes it leaves, and that shards and stops don't change them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from memory_store.cuts import complete_cuts
from memory_store.opening import in_process_store
from tests.small_job import dense_weights, small_job, table_content
from tests.workers.test_training import last_cut, run_interrupted, run_job
from workers.events import read_events
from workers.export import table_values
from workers.ranks import Ranks
from workers.revival import choose_donors, rows_to_reseed
from workers.revival_trail import read_revivals
from workers.run_folder import RunFolder
from workers.training import Trainer

# Without query norm and with many sub-keys for one head, many of them are never selected.
SETTINGS = {
    "memory__query_norm": "none",
    "memory__sub_keys": 64,
    "memory__heads": 1,
    "memory__k": 2,
    "memory__revive_dead_after": 4,
    "store__lookup": "fetch",
    "train__steps": 12,
    "train__cut_every": 6,
    "train__evaluate_every": 12,
}


def test_the_most_used_give_to_the_dead_in_turn():
    uses = np.zeros((2, 2, 6), dtype=np.int64)
    uses[0, 0] = [5, 0, 9, 1, 0, 0]  # mean 2.5: donors are 2, then 0
    uses[1, 0] = [1, 0, 2, 2, 2, 0]  # 1 and 5 are dead in both heads, of which 2 (11) and 0 (6) are used most
    uses[:, 1] = 3
    donors = choose_donors(uses)
    assert donors[0, 0].tolist() == [-1, 2, -1, -1, 0, 0]
    assert donors[1, 0].tolist() == [-1, 2, -1, -1, -1, 0]
    assert (donors[:, 1] == -1).all()
    rows, sources = rows_to_reseed(uses, donors)
    lines = [(1, 2), (5, 0)]
    assert rows.tolist() == [6 * dead + j for dead, _ in lines for j in range(6)]
    assert sources.tolist() == [6 * donor + j for _, donor in lines for j in range(6)]


def test_nobody_gives_where_nothing_was_used():
    uses = np.zeros((1, 2, 4), dtype=np.int64)
    donors = choose_donors(uses)
    assert (donors == -1).all()
    assert rows_to_reseed(uses, donors)[0].size == 0


def test_rows_of_both_halves_are_reseeded_once():
    uses = np.full((1, 2, 3), 2, dtype=np.int64)
    uses[0, 0], uses[0, 1] = [4, 0, 1], [0, 1, 5]
    rows, sources = rows_to_reseed(uses, choose_donors(uses))
    # First half: 1 after 0. Second half: 0 after 2. Row 3, of both, takes after the row of both donors.
    assert dict(zip(rows.tolist(), sources.tolist(), strict=True)) == {0: 2, 3: 2, 4: 1, 5: 2, 6: 8}


def test_the_dead_become_copies_with_noise_and_nothing_else_is_touched(corpus: Path, tmp_path: Path):
    """Two trainers side by side, of which one revives at its fourth step: what differs is what was revived."""
    states = []
    for name, window in (("with", 4), ("without", 1000)):
        job = small_job(corpus, **SETTINGS | {"memory__revive_dead_after": window})
        run = RunFolder(tmp_path / name)
        run.create(job)
        store = in_process_store(job.tables(), 2, lookup="fetch")
        trainer = Trainer(job, run, Ranks(), store)
        trainer._start()
        for _ in range(3):
            trainer.train_step()
        before = table_values(store.table("memory"))
        trainer.train_step()
        keys = trainer.model.memories()[1].product_keys
        assert keys is not None
        moments = trainer.optimizer.state[keys.sub_keys]["exp_avg"]
        states.append(
            (keys.sub_keys.detach(), table_values(store.table("memory")), moments, before, keys.uses)
        )
    (keys, values, moments, before, uses_after), (plain_keys, plain_values, plain_moments, _, uses) = states

    donors = choose_donors(uses.numpy())
    dead = torch.from_numpy(donors >= 0)
    assert 5 < int(dead.sum()) < dead.numel()
    assert torch.equal(keys[~dead], plain_keys[~dead])
    assert torch.equal(moments[~dead], plain_moments[~dead])
    assert not moments[dead].any()
    assert not uses_after.any()
    for head, half, number in dead.nonzero().tolist():
        donor = plain_keys[head, half, donors[head, half, number]]
        noise = keys[head, half, number] - donor
        assert 0.01 < float(noise.norm() / donor.norm()) < 0.4

    rows, sources = map(torch.from_numpy, rows_to_reseed(uses.numpy(), donors))
    assert rows.numel() > 0
    others = torch.ones(len(values), dtype=torch.bool)
    others[rows] = False
    assert torch.equal(values[others], plain_values[others])
    noise = values[rows] - before[sources]
    assert 0.05 < float(noise.norm() / before[sources].norm()) < 0.15

    (event,) = [event for event in read_events(tmp_path / "with" / "events.jsonl") if event.kind == "revival"]
    assert (event.step, event.message) == (
        3,
        f"{int(dead.sum())} dead sub-keys and {rows.numel()} rows of table 'memory' were re-seeded.",
    )
    (record,) = read_revivals(tmp_path / "with" / "revivals.jsonl")
    assert (record.step, record.table, record.rows) == (4, "memory", rows.numel())
    told = {
        (part.head, part.half, number): donor
        for part in record.revived
        for number, donor in zip(part.sub_keys, part.donors, strict=True)
    }
    assert told == {tuple(place): int(donors[tuple(place)]) for place in np.argwhere(donors >= 0).tolist()}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_shards_and_stops_change_no_byte(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run_job(small_job(corpus, **SETTINGS), tmp_path / "two")
    run_interrupted(small_job(corpus, **SETTINGS), tmp_path / "moved", 10, monkeypatch)  # in the third window
    run_job(small_job(corpus, **SETTINGS, store__shards=1), tmp_path / "moved", resume=True)
    cuts = [complete_cuts(tmp_path / name / "cuts") for name in ("two", "moved")]
    for theirs, ours in zip(*cuts, strict=True):
        assert dense_weights(theirs) == dense_weights(ours)
        assert table_content(theirs) == table_content(ours)
    # The trail tells of each revival once, though the one of step 8 was done twice.
    undisturbed, stopped = (read_revivals(tmp_path / name / "revivals.jsonl") for name in ("two", "moved"))
    assert [record.step for record in undisturbed] == [4, 8, 12]
    assert stopped == undisturbed
    run_job(small_job(corpus, **SETTINGS | {"memory__revive_dead_after": None}), tmp_path / "none")
    assert table_content(last_cut(tmp_path / "none")) != table_content(last_cut(tmp_path / "two"))
