"""The dashboard of the shards of a job."""

from __future__ import annotations

from dashboard import Dashboard, Panel, Variable
from selections import SHARD, last, quantile, rate

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
