"""The dashboard of one job."""

from __future__ import annotations

from dashboard import Dashboard, Panel, Variable
from selections import JOB, last, quantile, rate

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
            Panel(
                "Rows found on the device",
                "Share of a step's different rows that had a copy there; 0 unless memory.placement is cached.",
                "percentunit",
                {"{{index}}": last("pkm_memory_cache_hit_ratio", JOB, "index")},
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
