"""What the queries of the dashboards have in common."""

from __future__ import annotations

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
