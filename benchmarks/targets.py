"""The ratios that must hold, each measured in one run on one machine. The names are those in the JSON files."""

from __future__ import annotations

from dataclasses import dataclass

# Those of docs/performance.md.
BENCHMARKS = ("kernels", "selection", "transport", "step", "scaling", "durability", "service", "plan", "data")


@dataclass(frozen=True)
class Target:
    """A bound on one ratio of one benchmark; `says` is the ratio in words, and `ceiling` what in the place of our code is
    measured in the same run to show how high the ratio can be on this machine, if anything is.
    """

    benchmark: str
    ratio: str
    bound: float
    says: str
    at_least: bool = True
    ceiling: str = ""

    def met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    @property
    def bound_text(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.bound:g}"


TARGETS = (
    Target(
        "kernels",
        "lazy_adam_vs_torch_sparse_adam",
        20,
        "speed over EmbeddingBag + SparseAdam, lazy Adam",
        ceiling="a copy of as many bytes as a pass must read and write",
    ),
    Target(
        "kernels",
        "rowwise_adagrad_vs_fbgemm_cpu",
        4.5,
        "speed over FBGEMM on the CPU, row-wise Adagrad",
        ceiling="a copy of as many bytes as a pass must read and write",
    ),
    Target("kernels", "gather_of_copy_bandwidth", 0.5, "gather's bytes per second over those of a copy"),
    Target(
        "kernels", "pool_of_copy_bandwidth", 0.42, "pooled lookup's bytes per second over those of a copy"
    ),
    Target(
        "kernels",
        "update_of_copy_bandwidth",
        0.5,
        "row updates' bytes per second over those of a copy",
        ceiling="the same cache lines, each read and written, with nothing computed",
    ),
    Target("selection", "selection_vs_plain", 3, "speed over two top-k, all pairs, top-k"),
    Target("selection", "layer_vs_product_key_memory", 3, "speed of the whole layer over product-key-memory"),
    Target(
        "transport",
        "shm_vs_ray_actor_100k_rows",
        4,
        "speed of shared memory over a Ray actor call",
        ceiling="a gather of the rows out of this process's own memory",
    ),
    Target("transport", "shm_vs_ray_actor_1k_rows", 20, "speed of shared memory over a Ray actor call"),
    Target(
        "transport",
        "grpc_vs_ray_actor_10mb",
        1,
        "speed of gRPC over a Ray actor call, 10 MB and more",
        ceiling="plain TCP into a reused buffer",
    ),
    Target("transport", "grpc_vs_tcp_10mb", 0.5, "speed of gRPC over plain TCP, 10 MB and more"),
    Target(
        "transport",
        "grpc_bfloat16_vs_ray_actor_10mb",
        1.8,
        "speed of gRPC with bfloat16 on the wire over a Ray actor call, 10 MB and more",
        ceiling="plain TCP with half of the rows, which are as many bytes",
    ),
    Target(
        "transport",
        "bfloat16_bytes_over_float32_bytes",
        0.52,
        "bytes of fetched lookups with bfloat16 over float32 on the wire",
        at_least=False,
    ),
    Target(
        "transport",
        "bfloat16_bytes_over_float32_bytes_pool",
        0.6,
        "bytes of pooled lookups with bfloat16 over float32 on the wire (entries stay as they are)",
        at_least=False,
    ),
    Target(
        "transport",
        "pool_bytes_over_fetch_bytes",
        1 / 8,
        "bytes of pooled over fetched lookups",
        at_least=False,
    ),
    Target(
        "step", "step_shm_over_inprocess", 1.05, "time with shared memory over in process", at_least=False
    ),
    Target("step", "step_grpc_over_inprocess", 1.25, "time with gRPC over in process", at_least=False),
    Target("step", "step_vs_torch_sparse_adam", 2.5, "speed over plain PyTorch with SparseAdam"),
    Target("step", "step_vs_torch_dense_adam", 1.3, "speed over plain PyTorch with dense Adam"),
    Target("step", "step_vs_dense_twice_the_layers", 1, "speed over the dense model of twice the layers"),
    Target(
        "step",
        "inference_vs_dense_twice_the_layers",
        1.5,
        "speed of inference over the dense model with twice the layers",
    ),
    Target(
        "scaling",
        "lookups_2e24_over_2e16",
        0.5,
        "row lookups per second at 2^24 rows over those at 2^16",
        ceiling="the first number alone of each row, out of this process's own memory",
    ),
    Target(
        "scaling", "resident_over_ideal_bytes", 1.05, "memory over values and optimizer state", at_least=False
    ),
    Target(
        "durability",
        "log_step_overhead",
        0.05,
        "share of a training step that the log adds",
        at_least=False,
    ),
    Target(
        "durability",
        "log_update_overhead",
        0.10,
        "share of the time of bare updates that the log adds",
        at_least=False,
    ),
    Target(
        "durability",
        "cut_step_overhead",
        0.035,
        "share of 200 training steps that a cut in the background adds",
        at_least=False,
    ),
    Target(
        "durability",
        "cut_bytes_over_touched_bytes",
        1.1,
        "bytes that an incremental cut writes over those of the rows touched",
        at_least=False,
    ),
    Target(
        "durability",
        "recovery_seconds_4gb",
        10,
        "seconds from the death of a shard of 4 GB until its successor answers",
        at_least=False,
    ),
    Target(
        "service",
        "service_list_p99_ms",
        50,
        "milliseconds in which 99 of 100 lists of jobs are answered, of 100 000 jobs, at 100 requests/s beside 500 watchers",
        at_least=False,
    ),
    Target(
        "service",
        "service_status_p99_ms",
        50,
        "milliseconds in which 99 of 100 questions for a job are answered, as above",
        at_least=False,
    ),
    Target(
        "service", "service_watchers_told", 1, "share of 500 watchers who are told that their job has ended"
    ),
    Target(
        "service",
        "service_submits_lost_or_doubled",
        0,
        "jobs lost or doubled of 1000 that are submitted at once, each twice",
        at_least=False,
    ),
    Target(
        "service",
        "service_flooded_p99_ms",
        50,
        "milliseconds in which 99 of 100 lists and questions of a tenant are answered while another keeps 10 000 calls open",
        at_least=False,
    ),
    Target(
        "service",
        "service_flooded_over_quiet",
        2,
        "the same over that without another tenant",
        at_least=False,
    ),
    Target(
        "plan", "plan_median_error", 0.2, "error of a predicted step time, median of cases", at_least=False
    ),
    Target("data", "data_encode_vs_tokenizers_batch", 1, "speed of encoding over tokenizers.encode_batch"),
    Target(
        "data",
        "data_prepare_peak_gib",
        1.5,
        "GiB that all processes of `pkm data prepare` take together, for any size of text",
        at_least=False,
    ),
    Target("gpu", "host_over_gpu_table", 0.92, "tokens/s, table in host shards over table in GPU memory"),
    Target("gpu", "kernel_share_of_floor", 0.6, "time of a kernel's floor over its time, worst kernel"),
    Target(
        "gpu",
        "waits_for_the_device",
        0,
        "calls in a step that wait for all that the GPU was given, most of all ways to train",
        at_least=False,
    ),
)
