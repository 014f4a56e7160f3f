"""A process that closes databases while its threads read them.

python -m tests.service.jobs.closing FOLDER
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from service.jobs.database import JobDatabase
from tests.service.jobs.new_jobs import new_job

ROUNDS = 30


def main(folder: Path) -> None:
    for number in range(ROUNDS):
        database = JobDatabase(folder / f"{number}.sqlite")
        database._writer.execute("PRAGMA synchronous = OFF")
        for request in range(20):
            database.submit(new_job(f"r{request}"))
        reading = [threading.Event() for _ in range(4)]
        over = threading.Event()

        def read(database: JobDatabase, began: threading.Event, over: threading.Event) -> None:
            while not over.is_set():
                assert len(database.newest()) == 20
                began.set()

        threads = [threading.Thread(target=read, args=(database, began, over)) for began in reading]
        for thread in threads:
            thread.start()
        for began in reading:
            began.wait()
        database.close()
        over.set()
        for thread in threads:
            thread.join()
    print("closed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
