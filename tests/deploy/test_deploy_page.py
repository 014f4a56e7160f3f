"""The sizes that docs/deploy.md gives are those of the command beside them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from service.job_file import load_job
from workers.plan_sizes import shard_bytes

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_page_tells_what_the_plan_of_its_command_says() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^pkm plan (?:.*\\\n)*.*$", page, flags=re.MULTILINE)
    _, _, job_file, *arguments = shlex.split(command.replace("\\\n", " "))
    changes = [arguments[at + 1] for at, argument in enumerate(arguments) if argument == "--set"]
    shards = int(arguments[arguments.index("--shards") + 1])
    tables = load_job(ROOT / job_file, [*changes, f"store.shards={shards}"]).job.tables()
    (said,) = re.findall(r"the ([\d,]+) rows of this table take ([\d.]+) GiB of each of (\d+) shards", page)
    assert said == (f"{tables[0].rows:,}", f"{shard_bytes(tables, shards) / 2**30:.1f}", str(shards))
