"""The three dashboards: the fleet, one job, and its shards.

python deploy/grafana/dashboards.py        writes deploy/grafana/dashboards/*.json
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from dashboard import Dashboard, Panel, Variable

FOLDER = Path(__file__).resolve().parent / "dashboards"
JOB = 'job_id=~"$job_id"'
SHARD = (
    'job_id=~"$job_id", process=~"shard|driver", index=~"$index"'  # the driver, where shards live inside it
)


def rate(metric: str, labels: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}{{{labels}}}[$__rate_interval]))"


def quantile(share: float, histogram: str, labels: str, by: str) -> str:
    return f"histogram_quantile({share}, {rate(f'{histogram}_bucket', labels, f'{by}, le')})"


def last(metric: str, labels: str, by: str) -> str:
    return f"max by ({by}) ({metric}{{{labels}}})"


FLEET = Dashboard(
    "pkm-fleet",
    "pkm fleet",
    "All jobs of a service, its queue and its hosts.",
    [],
    [
        [
            Panel(
                "Jobs", "Jobs by state.", "short", {"{{state}}": "sum by (state) (pkm_service_jobs)"}, "stat"
            ),
            Panel(
                "Queue",
                "Jobs that wait for their turn.",
                "short",
                {"waiting": "sum(pkm_service_queue_length)"},
                "stat",
            ),
            Panel(
                "Longest wait",
                "How long the job has waited that is queued longest.",
                "s",
                {"oldest": "max(pkm_service_queue_oldest_seconds)"},
                "stat",
            ),
            Panel(
                "Cluster",
                "1 if the Ray cluster answers the service.",
                "short",
                {"answers": "min(pkm_service_cluster_up)"},
                "stat",
            ),
        ],
        [
            Panel(
                "Tokens per second",
                "Of each job, over all its trainers.",
                "short",
                {"{{job_id}}": "sum by (job_id) (rate(pkm_trainer_tokens_total[$__rate_interval]))"},
            ),
            Panel(
                "Loss",
                "Training loss of each job.",
                "short",
                {"{{job_id}}": "max by (job_id) (pkm_trainer_loss_nats)"},
            ),
        ],
        [
            Panel(
                "Processes that answer",
                "Of all jobs, by kind; a fall is a death.",
                "short",
                {"{{process}}": 'sum by (process) (up{job="pkm-jobs"})'},
            ),
            Panel(
                "Processes started again",
                "Restarts of drivers and trainers, and of shards, over an hour.",
                "short",
                {
                    "{{job_id}} drivers and trainers": 'sum by (job_id) (increase(pkm_job_events_total{kind="restart"}[1h]))',
                    "{{job_id}} shards": "sum by (job_id) (increase(pkm_job_shard_restarts_total[1h]))",
                },
            ),
        ],
        [
            Panel(
                "Memory",
                "Resident memory of all processes, by job and kind.",
                "bytes",
                {"{{job_id}} {{process}}": "sum by (job_id, process) (process_resident_memory_bytes)"},
            ),
            Panel(
                "Processor",
                "Cores in use, by job and kind.",
                "short",
                {
                    "{{job_id}} {{process}}": "sum by (job_id, process) "
                    "(rate(process_cpu_seconds_total[$__rate_interval]))"
                },
            ),
            Panel(
                "Disk left",
                "Share of the disk that is free, of the service and of the runs.",
                "percentunit",
                {
                    "service": "min(pkm_service_disk_free_bytes / pkm_service_disk_bytes)",
                    "{{job_id}}": "min by (job_id) (pkm_job_disk_free_bytes / pkm_job_disk_bytes)",
                },
            ),
        ],
    ],
)

JOB_DASHBOARD = Dashboard(
    "pkm-job",
    "pkm job",
    "One job: how it learns, how fast, how its memory is used, and what has happened to it.",
    [Variable("job_id", "label_values(pkm_job_steps, job_id)", several=False)],
    [
        [
            Panel(
                "Phase",
                "Where the job is.",
                "short",
                {"{{phase}}": f"{last('pkm_job_phase', JOB, 'phase')} == 1"},
                "stat",
            ),
            Panel(
                "Steps",
                "Steps that are finished, as a share of those to make.",
                "percentunit",
                {"done": f"max(pkm_job_step{{{JOB}}}) / max(pkm_job_steps{{{JOB}}})"},
                "stat",
            ),
            Panel(
                "Time left", "As it looks now.", "s", {"left": f"max(pkm_job_left_seconds{{{JOB}}})"}, "stat"
            ),
            Panel(
                "Age of the last cut",
                "What a failure would cost now, at most.",
                "s",
                {"age": f"time() - max(pkm_cut_timestamp_seconds{{{JOB}}})"},
                "stat",
            ),
        ],
        [
            Panel(
                "Loss",
                "Training loss of the last step.",
                "short",
                {"loss": f"max(pkm_trainer_loss_nats{{{JOB}}})"},
            ),
            Panel(
                "Perplexity",
                "At evaluations, by text.",
                "short",
                {"{{split}}": last("pkm_perplexity", JOB, "split")},
            ),
            Panel(
                "Tokens per second",
                "Over all trainers.",
                "short",
                {"tokens": f"sum(rate(pkm_trainer_tokens_total{{{JOB}}}[$__rate_interval]))"},
            ),
        ],
        [
            Panel(
                "Gradient norms",
                "Before clipping: of the dense part, and of the values if they are clipped.",
                "short",
                {"{{kind}}": last("pkm_trainer_gradient_norm", JOB, "kind")},
            ),
            Panel(
                "Learning rates",
                "Dense and of the values.",
                "short",
                {"{{kind}}": last("pkm_trainer_learning_rate", JOB, "kind")},
            ),
            Panel(
                "Steps skipped",
                "Steps that changed nothing, because a gradient was not finite.",
                "short",
                {"skipped": f"max(pkm_trainer_steps_skipped_total{{{JOB}}})"},
            ),
        ],
        [
            Panel(
                "Steps per second",
                "Of each trainer.",
                "short",
                {"{{index}}": rate("pkm_trainer_steps_total", JOB, "index")},
            ),
            Panel(
                "Since the last step",
                "Time since a trainer has finished a step.",
                "s",
                {"{{index}}": f"time() - {last('pkm_trainer_last_step_timestamp_seconds', JOB, 'index')}"},
            ),
            Panel(
                "Time of a step",
                "Half of the steps take less than the first, one in a hundred more than the second.",
                "s",
                {
                    f"p{share * 100:.0f}": quantile(share, "pkm_trainer_step_seconds", JOB, "job_id")
                    for share in (0.5, 0.99)
                },
            ),
            Panel(
                "Standing still",
                "Share of the trainers' time, by what they wait for.",
                "percentunit",
                {
                    "{{cause}}": "avg by (cause) "
                    f"(rate(pkm_trainer_stall_seconds_total{{{JOB}}}[$__rate_interval]))"
                },
            ),
        ],
        [
            Panel(
                "Memory usage",
                "Share of rows with any access at evaluations; and of rows updated in the last 100 steps.",
                "percentunit",
                {
                    "{{table}} {{split}}": last("pkm_memory_usage_ratio", JOB, "table, split"),
                    "last 100 steps": f"max(pkm_memory_recent_usage_ratio{{{JOB}}})",
                },
            ),
            Panel(
                "KL to uniform",
                "How far the accesses are from uniform, in nats.",
                "short",
                {"{{table}} {{split}}": last("pkm_memory_kl_nats", JOB, "table, split")},
            ),
            Panel(
                "Top 1 % share",
                "Share of the access weight on the 1 % most used rows.",
                "percentunit",
                {"{{table}} {{split}}": last("pkm_memory_top1_share_ratio", JOB, "table, split")},
            ),
            Panel(
                "Dead slots",
                "Rows without access at evaluations, and all rows.",
                "short",
                {
                    "{{table}} {{split}}": last("pkm_memory_dead_slots", JOB, "table, split"),
                    "{{table}} rows": last("pkm_memory_slots", JOB, "table"),
                },
            ),
        ],
        [
            Panel(
                "Lookups per second",
                "Requests at shards, and lookups in shared memory.",
                "short",
                {"{{kind}} {{carrier}}": rate("pkm_lookups_total", JOB, "kind, carrier")},
            ),
            Panel(
                "Time of a lookup",
                "From its arrival to its answer; one in a hundred takes longer.",
                "s",
                {"p99 {{kind}} {{carrier}}": quantile(0.99, "pkm_lookup_seconds", JOB, "kind, carrier")},
            ),
        ],
        [
            Panel(
                "Steps since the last cut",
                "Steps that a failure would cost now.",
                "short",
                {"steps": f"max(pkm_job_step{{{JOB}}}) - max(pkm_cut_step{{{JOB}}})"},
            ),
            Panel("Cuts", "Size of the last cut.", "bytes", {"size": f"max(pkm_cut_bytes{{{JOB}}})"}),
            Panel(
                "Time of a cut",
                "From its begin to its manifest, beside the steps; the mean over an hour.",
                "s",
                {
                    "mean": f"sum(increase(pkm_cut_seconds_sum{{{JOB}}}[1h])) "
                    f"/ sum(increase(pkm_cut_seconds_count{{{JOB}}}[1h]))"
                },
            ),
            Panel(
                "Events",
                "What has happened since the run was begun; and shards that were started again.",
                "short",
                {
                    "{{kind}}": last("pkm_job_events_total", JOB, "kind"),
                    "shard restart": f"max(pkm_job_shard_restarts_total{{{JOB}}})",
                },
            ),
        ],
    ],
)

SHARD_DASHBOARD = Dashboard(
    "pkm-shard",
    "pkm shard",
    "The shards of a job, side by side: load, time, memory and disk.",
    [
        Variable("job_id", "label_values(pkm_job_steps, job_id)", several=False),
        Variable("index", 'label_values(pkm_shard_version{job_id=~"$job_id"}, index)'),
    ],
    [
        [
            Panel(
                "Lookups per second",
                "Requests answered.",
                "short",
                {"{{index}} {{kind}}": rate("pkm_lookups_total", SHARD, "index, kind")},
            ),
            Panel(
                "Rows per second",
                "Rows read.",
                "short",
                {"{{index}} {{kind}}": rate("pkm_lookup_rows_total", SHARD, "index, kind")},
            ),
            Panel(
                "Bytes per second",
                "Values given, and gradients taken.",
                "Bps",
                {
                    "{{index}} given": rate("pkm_lookup_bytes_total", SHARD, "index"),
                    "{{index}} taken": rate("pkm_shard_update_bytes_total", SHARD, "index"),
                },
            ),
        ],
        [
            Panel(
                "Time of a lookup",
                "One in a hundred takes longer.",
                "s",
                {"p99 {{index}} {{kind}}": quantile(0.99, "pkm_lookup_seconds", SHARD, "index, kind")},
            ),
            Panel(
                "Time of the optimizer",
                "For one table in one step; one in a hundred takes longer.",
                "s",
                {"p99 {{index}}": quantile(0.99, "pkm_shard_optimizer_seconds", SHARD, "index")},
            ),
            Panel(
                "Staleness",
                "Steps that lookups were behind, on average.",
                "short",
                {
                    "{{index}}": f"{rate('pkm_shard_lookup_staleness_steps_sum', SHARD, 'index')} "
                    f"/ {rate('pkm_shard_lookup_staleness_steps_count', SHARD, 'index')}"
                },
            ),
        ],
        [
            Panel(
                "Updates per second",
                "Contributions taken, and commits.",
                "short",
                {
                    "{{index}} {{kind}}": rate("pkm_shard_updates_total", SHARD, "index, kind"),
                    "{{index}} commits": rate("pkm_shard_commits_total", SHARD, "index"),
                },
            ),
            Panel(
                "Entries of updates per second",
                "Rows, or uses of rows, in the contributions taken.",
                "short",
                {"{{index}} {{kind}}": rate("pkm_shard_update_rows_total", SHARD, "index, kind")},
            ),
            Panel(
                "Duplicates per second",
                "Updates that came again and were not applied again.",
                "short",
                {"{{index}}": rate("pkm_shard_duplicates_refused_total", SHARD, "index")},
            ),
            Panel(
                "Requests per second",
                "By how they ended.",
                "short",
                {"{{index}} {{outcome}}": rate("pkm_shard_requests_total", SHARD, "index, outcome")},
            ),
        ],
        [
            Panel(
                "Version", "Steps applied.", "short", {"{{index}}": last("pkm_shard_version", SHARD, "index")}
            ),
            Panel(
                "Rows",
                "Rows that lie there.",
                "short",
                {"{{index}} {{table}}": last("pkm_shard_rows", SHARD, "index, table")},
            ),
            Panel(
                "Memory",
                "The tables' arrays, and the whole process.",
                "bytes",
                {
                    "{{index}} {{part}}": f"sum by (index, part) (pkm_shard_resident_bytes{{{SHARD}}})",
                    "{{process}} {{index}}": last("process_resident_memory_bytes", SHARD, "process, index"),
                },
            ),
            Panel(
                "Processor",
                "Cores in use.",
                "short",
                {"{{process}} {{index}}": rate("process_cpu_seconds_total", SHARD, "process, index")},
            ),
        ],
        [
            Panel(
                "Time of a sync of the log",
                "Until the log is on the disk; one in a hundred takes longer. With durability log.",
                "s",
                {"p99 {{index}}": quantile(0.99, "pkm_shard_log_sync_seconds", SHARD, "index")},
            ),
            Panel(
                "Log refused",
                "1 while the disk takes no log.",
                "short",
                {"{{index}}": last("pkm_shard_log_refused", SHARD, "index")},
            ),
            Panel(
                "Recovery",
                "Time that the shard took to recover from its log at its start.",
                "s",
                {"{{index}}": last("pkm_shard_replay_seconds", SHARD, "index")},
            ),
        ],
        [
            Panel(
                "Time of a cut",
                "The mean over an hour.",
                "s",
                {
                    "{{index}}": f"sum by (index) (increase(pkm_shard_cut_seconds_sum{{{SHARD}}}[1h])) "
                    f"/ sum by (index) (increase(pkm_shard_cut_seconds_count{{{SHARD}}}[1h]))"
                },
            ),
            Panel(
                "Bytes of cuts",
                "Over an hour.",
                "bytes",
                {"{{index}}": f"sum by (index) (increase(pkm_shard_cut_bytes_total{{{SHARD}}}[1h]))"},
            ),
            Panel(
                "Cuts that failed",
                "Since the shard was started.",
                "short",
                {"{{index}}": last("pkm_shard_cuts_failed_total", SHARD, "index")},
            ),
        ],
    ],
)

ALL = (FLEET, JOB_DASHBOARD, SHARD_DASHBOARD)

if __name__ == "__main__":
    for dashboard in ALL:
        dashboard.file_in(FOLDER).write_text(dashboard.text())
