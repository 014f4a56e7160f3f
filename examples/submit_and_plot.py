"""Submits a job to a running service, follows it to its end, and plots its loss.

    pkm serve --data examples/data &
    python examples/submit_and_plot.py examples/quickstart.yaml loss.png

The service is that of this machine, or the one of PKM_SERVER or the profile (`service/profile.py`).
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt

import service
from service.job_file import load_job


def main(job_file: Path, picture: Path) -> None:
    with service.open_client(None) as client:
        job = client.submit(load_job(job_file, ()).job)
        print(f"submitted {job.id}")
        for update in client.watch(job.id):
            for change in update.changes:
                print(f"{change.state}: {change.reason}")
            job = update.job
        if job.state != service.JobState.SUCCEEDED:
            sys.exit(f"job {job.id} has {job.state}: {job.reason}")

        records = list(client.metrics(job.id))
    figure, axes = plt.subplots()
    axes.plot([record.step for record in records], [record.loss for record in records])
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=f"{job.name} ({job.id})")
    figure.savefig(picture)
    print(f"the loss is drawn in {picture}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
