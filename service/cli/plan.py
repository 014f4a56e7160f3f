"""`pkm plan`: what a job would take, before it runs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.arguments import JobFile, Overrides
from service.cli.output import JsonOption, data_only, messages, print_json

if TYPE_CHECKING:
    from workers.job_spec import JobSpec
    from workers.plan import Network, Plan
    from workers.plan_device import Gpu

GIB = 1 << 30
UNPREPARED_VOCABULARY = 32_000


def plan(
    job_file: JobFile,
    shards: Annotated[
        int | None, typer.Option(help="Shards; store.shards unless given.", show_default=False)
    ] = None,
    trainers: Annotated[
        int | None, typer.Option(help="Trainers; train.trainers unless given.", show_default=False)
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            metavar="RATE",
            help="Link of every host, such as 25Gbit or 300MB/s: each shard and each trainer has a host of its own. "
            "Without it, all are on this machine and share its cores.",
            show_default=False,
        ),
    ] = None,
    gpu_memory: Annotated[
        float | None,
        typer.Option(
            metavar="GIB",
            min=0.001,
            help="Memory of each trainer's GPU; that of this machine's unless given.",
            show_default=False,
        ),
    ] = None,
    pcie: Annotated[
        str | None,
        typer.Option(
            metavar="RATE",
            help="Rate between host and GPU in each direction; 25GB/s unless given (PCIe 4.0, 16 lanes).",
            show_default=False,
        ),
    ] = None,
    gpu_link: Annotated[
        str | None,
        typer.Option(
            metavar="RATE",
            help="Rate between the GPUs of one host in each direction, such as that of NVLink; that of PCIe unless given.",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    json: JsonOption = False,
) -> None:
    """Predict memory per shard, bytes and time of a step, tokens/s, and what limits them.

    A few kernels are timed here for that, some seconds long; hosts are taken to be like this one.
    """
    # Read when numba and torch are imported: threads that wait for work sleep, as they do in shards and trainers.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from service.job_file import load_job
    from service.link_rates import parse_rate
    from workers.plan import Network, check_network, make_plan
    from workers.plan_device import check_tables_fit, shortage

    given = [*(overrides or ())]
    given += [f"store.shards={shards}"] * (shards is not None)
    given += [f"train.trainers={trainers}"] * (trainers is not None)
    job = load_job(job_file, given).job
    link = Network() if network is None else Network(parse_rate(network), hosts_apart=True)
    check_network(job, link)
    gpu = _gpu(job, gpu_memory, pcie, gpu_link)
    check_tables_fit(job, gpu)
    from workers.plan_calibration import calibrate

    vocabulary_size, assumptions = _vocabulary(job)
    if gpu is not None:
        assumptions += _of_gpus(gpu, pcie)
    with data_only(), messages().status("Timing this machine ..."):
        calibration = calibrate(job, vocabulary_size)
    found = make_plan(job, calibration, link, gpu)
    assumptions.append(
        "rows are accessed uniformly, which no text does: bytes and times of rows are upper bounds"
    )
    if json:
        print_json(_figures(found, link, assumptions) | {"gpu": gpu, "calibration": calibration})
    else:
        _print_plan(found, link, assumptions)
    if gpu is not None and found.device is not None and (warning := shortage(found.device, gpu)):
        messages().print(f"Warning: {warning}.")


def _vocabulary(job: JobSpec) -> tuple[int, list[str]]:
    """The vocabulary size of the job's corpus, or a usual one if it has not been prepared, and a line that says so."""
    from memory_store.errors import UsageError
    from workers.corpus import open_corpus

    try:
        return open_corpus(job.data.corpus).info.vocabulary_size, []
    except UsageError:
        size = UNPREPARED_VOCABULARY
        return size, [f"the corpus {job.data.corpus} can't be read here; its vocabulary has {size:,} tokens"]


def _gpu(job: JobSpec, memory_gib: float | None, pcie: str | None, link: str | None) -> Gpu | None:
    """The GPU of each trainer; None for a job on CPUs."""
    import torch

    from memory_store.errors import UsageError
    from service.link_rates import parse_rate
    from workers.plan_device import PCIE_BYTES_PER_SECOND, Gpu

    given = memory_gib is not None or pcie is not None or link is not None
    if job.train.device == "cpu":
        if given:
            raise UsageError(
                "Trainers on train.device cpu use no GPU; leave --gpu-memory, --pcie and --gpu-link out, or set "
                "train.device=cuda."
            )
        return None
    here = torch.cuda.is_available()
    if not (here or given or job.train.device == "cuda"):
        return None
    memory_bytes = memory_gib * GIB if memory_gib is not None else None
    if memory_bytes is None and here:
        memory_bytes = torch.cuda.mem_get_info()[1]
    return Gpu(
        memory_bytes,
        parse_rate(pcie) if pcie is not None else PCIE_BYTES_PER_SECOND,
        parse_rate(link) if link is not None else None,
    )


def _of_gpus(gpu: Gpu, pcie: str | None) -> list[str]:
    import torch

    lines = []
    if pcie is None:
        lines.append(f"PCIe moves {gpu.pcie_bytes_per_second / 1e9:g} GB/s in each direction")
    if gpu.memory_bytes is None:
        lines.append("the GPUs have memory enough: --gpu-memory says how much they have")
    if not torch.cuda.is_available():
        lines.append(
            "GPUs compute as fast as this machine's CPU, which was timed in their place: they are faster"
        )
    return lines


def _figures(plan: Plan, network: Network, assumptions: list[str]) -> dict[str, Any]:
    return {
        "trainers": plan.trainers,
        "shards": plan.shards,
        "network_bytes_per_second": network.bytes_per_second,
        "lookup": plan.lookup,
        "table_rows": plan.table_rows,
        "distinct_rows_per_lookup": plan.distinct_rows,
        "shard_memory_gib": plan.shard_bytes / GIB,
        "shard_pending_gib": plan.pending_bytes / GIB,
        "device_memory_bytes": plan.device,
        "parts": [
            {
                "name": part.name,
                "bytes": part.bytes,
                "seconds": part.seconds,
                "step_seconds": part.step_seconds,
                "share": part.step_seconds / plan.step_seconds,
            }
            for part in plan.parts
        ],
        "step_seconds": plan.step_seconds,
        "tokens_per_second": plan.tokens_per_second,
        "limit": plan.limit.name,
        "assumptions": assumptions,
    }


def _print_plan(plan: Plan, network: Network, assumptions: list[str]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    from service.link_rates import rate_text

    rate = network.bytes_per_second
    where = "all on one host" if rate is None else f"each on a host of its own, links of {rate_text(rate)}"
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{plan.trainers} trainers, {plan.shards} shards, {where}; lookup: {plan.lookup}")
    right = [Column(title, justify="right") for title in ("MB", "ms", "ms of the step", "share")]
    table = Table("part of a step", *right, "")
    for part in plan.parts:
        limits = part == plan.limit
        table.add_row(
            part.name,
            f"{part.bytes / 1e6:,.1f}" if part.bytes else "",
            f"{part.seconds * 1e3:,.1f}",
            f"{part.step_seconds * 1e3:,.1f}",
            f"{part.step_seconds / plan.step_seconds:.0%}",
            "limits" if limits else "",
            style="bold" if limits else None,
        )
    console.print(table)
    console.print(
        f"step               {plan.step_seconds * 1e3:,.1f} ms, {plan.tokens_per_second:,.0f} tokens/s"
    )
    if plan.shards:
        console.print(
            f"table              {plan.table_rows:,} rows; a lookup reads {plan.distinct_rows:,.0f} different ones"
        )
        console.print(
            f"memory per shard   {plan.shard_bytes / GIB:,.3g} GiB, and {plan.pending_bytes / GIB:,.2g} GiB of gradients "
            "until a step is applied"
        )
    if plan.device is not None:
        device = plan.device
        console.print(
            f"memory per device  {device.total / GIB:,.3g} GiB: tables {device.tables / GIB:,.3g}, dense part "
            f"{device.dense / GIB:,.3g}, activations {device.activations / GIB:,.3g}, lookups {device.lookups / GIB:,.3g}"
        )
    for line in assumptions:
        console.print(f"Assumed: {line}.")
