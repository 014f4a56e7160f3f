"""From a log back to the shard that wrote it: load its newest snapshot, apply the steps since, go on."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from memory_store.bucket_files import read_buckets
from memory_store.cuts import check_file
from memory_store.errors import CutError, LogError
from memory_store.log_records import Base, GroupState
from memory_store.log_storage import FolderStorage, LogStorage
from memory_store.shard import ShardCore
from memory_store.step_log import LogContent, StepLog

_log = logging.getLogger(__name__)


def take_over_or_begin_anew(core: ShardCore, folder: Path) -> StepLog:
    """`take_over` of the log in `folder`; a damaged one is put aside, and the shard begins anew at its first values.

    Its writers notice that the group is gone, and go back to their last cut.
    """
    try:
        return take_over(core, FolderStorage(folder))
    except (LogError, CutError) as error:
        aside = folder.with_name(f"{folder.name}-damaged-{core.incarnation}")
        _log.error("shard %d begins anew, its log is kept in %s: %s", core.shard, aside, error)
        folder.rename(aside)
        core.fill_with_first_values()
        core.restore(0, GroupState())
        return take_over(core, FolderStorage(folder))


Load = Callable[[ShardCore, Base], None]


def take_over(core: ShardCore, storage: LogStorage, load: Load | None = None) -> StepLog:
    """Take a shard's log over, and bring `core`, which is new, to where the log ends; an empty log begins at first values.

    `load` fills the tables with a snapshot, by default out of the files of its cut. Where one is damaged (CutError) an
    older one and more of the log are used. Raises LogError where the log is damaged or
    another shard's, CutError if no snapshot can be read; `core` is then of no use any more.
    """
    log = StepLog(
        storage,
        shard=core.shard,
        placement=core.placement.digest,
        tables=json.dumps([asdict(part.spec) for part in core.tables.values()]),
        incarnation=core.incarnation,
    )
    content = log.read()
    if content is None:
        core.fill_with_first_values()
        log.start(Base(version=0), core.group_state())
        return log
    base = _load_newest(core, content, load or load_snapshot)
    core.restore(base.version, content.group)
    for step in content.steps(base.version):
        core.replay(step)
    _log.info("shard %d: recovered version %d from %d", core.shard, core.version, base.version)
    log.resume(core.version, content.group)
    return log


def _load_newest(core: ShardCore, content: LogContent, load: Load) -> Base:
    damage: CutError | LogError | None = None
    for base in reversed(content.bases):
        try:
            load(core, base)
        except CutError as error:
            _log.warning("shard %d: the snapshot of version %d: %s", core.shard, base.version, error)
            damage = error
        else:
            return base
    assert damage is not None
    raise damage


def load_snapshot(core: ShardCore, base: Base) -> None:
    """Fill the tables with `base`. Raises CutError, naming the file, if one is missing or damaged.

    Files are read while they are checked: nobody sees the tables before both are done.
    """
    if base.folder is None:
        core.fill_with_first_values()
        return
    folder = Path(base.folder)
    with ThreadPoolExecutor(1, thread_name_prefix="check") as checking:
        checks = [checking.submit(check_file, folder, entry) for entry in base.files]
        core.begin_replacing()
        try:
            for part in core.tables.values():
                read_buckets(folder, [entry for entry in base.files if entry.table == part.spec.name], part)
        finally:
            for check in checks:
                check.result()  # what it says of a damaged file is clearer than why that could not be read
