"""A run's folder: one place for all that a run leaves behind.

job.yaml         the job as it was resolved, defaults and overrides included
metrics.jsonl    one line per step (report.py: StepRecord)
events.jsonl     what else has happened: restarts, cuts that failed (events.py: Event)
revivals.jsonl   which dead sub-keys were re-seeded, and from which (revival_trail.py)
report.json      the figures of the finished run (report.py: Report)
job.log          what the processes of the run printed, if a service runs it
status.json      how far a job of a service is, outcome.json how it ended (job_status.py); shards.json how busy its shards are
access-map.arrow how often each pair of sub-keys was used on held-out text
training-map.arrow how often the last steps have read each (training_map.py)
background/      which rows the old text of a finetuned model reads (learning_rows.py)
plots/           loss.png, access-map.png
cuts/            checkpoints (memory_store/cuts.py)
scrape/          where the processes of the job serve their metrics, while it runs (job_scrape.py)
traces/          spans of traced steps, one file a process (memory_store/span_file.py), with train.trace_every
logs/            logs of the shards while the job runs, with store.durability "log" (memory_store/step_log.py)
"""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from memory_store.durable_files import replace_file
from memory_store.errors import UsageError
from workers.job_spec import JobSpec


class RunFolder:
    """The files of the run at `path`; nothing is created before `create`."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path).absolute()
        self.job_path = self.path / "job.yaml"
        self.metrics_path = self.path / "metrics.jsonl"
        self.revivals_path = self.path / "revivals.jsonl"
        self.events_path = self.path / "events.jsonl"
        self.report_path = self.path / "report.json"
        self.access_map_path = self.path / "access-map.arrow"
        self.training_map_path = self.path / "training-map.arrow"
        self.beats_path = self.path / "beats"
        self.move_path = self.path / "move.json"
        self.log_path = self.path / "job.log"
        self.halt_path = self.path / "halt.json"
        self.pause_path = self.path / "pause.json"
        self.failure_path = self.path / "failure.json"
        self.background_path = self.path / "background"
        self.plots_path = self.path / "plots"
        self.cuts_path = self.path / "cuts"
        self.logs_path = self.path / "logs"
        self.traces_path = self.path / "traces"
        self.scrape_path = self.path / "scrape"
        self.scrape_digest_path = self.scrape_path / "token.sha256"
        self.scrape_authority_path = self.scrape_path / "authority.pem"

    def exists(self) -> bool:
        """Whether a run has been started here."""
        return self.job_path.is_file()

    def create(self, job: JobSpec) -> None:
        """Make the folder and keep the job in it. Raises UsageError if something is there already."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UsageError(
                f"{self.path} exists already; continue it with --resume, choose another folder with --run, "
                "or replace it with --overwrite."
            )
        self.cuts_path.mkdir(parents=True)
        self.plots_path.mkdir()
        self.save_job(job)

    def remove(self) -> None:
        """Delete the run. Raises UsageError if the folder is not a run's."""
        if not self.exists():
            raise UsageError(
                f"{self.path} is not the folder of a run (it has no job.yaml); it was not removed."
            )
        shutil.rmtree(self.path)

    def save_job(self, job: JobSpec) -> None:
        text = yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False)
        replace_file(self.job_path, text.encode())

    def save_scrape_digest(self, digest: str) -> None:
        """Keep the SHA-256 of the token with which the metrics of the job's processes may be read."""
        self.scrape_path.mkdir(exist_ok=True)
        replace_file(self.scrape_digest_path, digest.encode())

    def load_job(self) -> JobSpec:
        """The job of this run. Raises UsageError if there is none or it can't be read."""
        if not self.exists():
            raise UsageError(f"{self.path} is not the folder of a run: it has no job.yaml.")
        try:
            return JobSpec.model_validate(yaml.safe_load(self.job_path.read_text(encoding="utf-8")))
        except (ValueError, yaml.YAMLError) as error:
            raise UsageError(f"{self.job_path} can't be read as a job: {error}") from None
