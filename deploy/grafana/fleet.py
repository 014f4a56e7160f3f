"""The dashboard of all jobs of a service."""

from __future__ import annotations

from dashboard import Dashboard, Panel

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
