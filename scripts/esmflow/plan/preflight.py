"""What a plan will take, told before anything is embedded: jobs, device-hours, memory and disk."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import psutil

from esmflow.errors import DeviceError, WriteError
from esmflow.job import Job
from esmflow.plan import estimate
from esmflow.plan.sizes import Sizes
from esmflow.run_plan import JobForecast, Preflight
from esmflow.treatment import WHOLE

_GIB = 1 << 30


def forecast(job: Job, rates: Mapping[str, estimate.Rate], longest: int, sizes: Sizes) -> JobForecast:
    """What a job is expected to take. rates: of each model; longest: residues of the longest sequence."""
    minutes, memory = 0.0, 0
    for name, model in job.models.items():
        shards = [shard for shard in job.shards if shard.model == name]
        minutes += estimate.minutes(model.descriptor, sum(shard.cost for shard in shards), rates[name])
        needed = estimate.memory_mb(
            model.descriptor,
            {output for shard in shards for output in shard.outputs},
            device=rates[name].device,
            gpus=sizes.gpus_per_job,
            threads=sizes.threads,
            longest=longest if model.spec.long_treatment == WHOLE else min(longest, model.spec.max_length),
            tokens_per_pack=sizes.tokens_per_pack,
            # What is computed is float32 until it is committed.
            shard_bytes=4 // np.dtype(model.spec.vectors).itemsize * max(shard.value_bytes for shard in shards),
        )
        memory = max(memory, needed)
    return JobForecast(
        models=list(job.models),
        shards=len(job.shards),
        sequences=sum(shard.sequences for shard in job.shards),
        cost=job.cost,
        minutes=round(minutes, 2),
        memory_mb=memory,
    )


def sum_up(
    jobs: Sequence[Job],
    forecasts: Sequence[JobForecast],
    rates: Mapping[str, estimate.Rate],
    sizes: Sizes,
    table_bytes: int,
) -> Preflight:
    """What all the jobs will take. forecasts: of each job; table_bytes: of the tables that wait for them."""
    models = {name: model for job in jobs for name, model in job.models.items()}
    minutes = [forecast.minutes for forecast in forecasts]
    return Preflight(
        jobs=len(jobs),
        sequences=sum(forecast.sequences for forecast in forecasts),
        device=max((rates[name].device for name in models), default=""),
        device_hours=round(sum(minutes) / 60 * max(sizes.gpus_per_job, 1), 3),
        longest_minutes=max(minutes, default=0.0),
        measured=all(rates[name].measured for name in models),
        memory_mb=max((forecast.memory_mb for forecast in forecasts), default=0),
        weights_bytes=4 * max((model.architecture.matrix_numbers for model in models.values()), default=0),
        store_bytes=sum(shard.value_bytes for job in jobs for shard in job.shards),
        table_bytes=table_bytes,
    )


def text(preflight: Preflight, store: Path, results: Path) -> str:
    """A preflight as a block of lines for people."""
    if not preflight.jobs:
        return "preflight: nothing is to be embedded"
    name = {"cpu": "CPU", "cuda": "GPU"}[preflight.device]
    basis = "measured in earlier jobs" if preflight.measured else "an assumed rate, until a job was measured"
    longest = f"the longest job {preflight.longest_minutes:,.1f} minutes"
    lines = [
        f"{preflight.sequences:,} sequences in {preflight.jobs:,} jobs",
        f"{preflight.device_hours:,.2f} {name}-hours, {longest} ({basis})",
        f"{preflight.memory_mb:,} MB of host memory for the largest job",
        f"{_amount(preflight.store_bytes)} for {store}, {_amount(_free(store))} free",
        f"{_amount(preflight.table_bytes)} for tables in {results}, {_amount(_free(results))} free",
    ]
    return "\n    ".join(["preflight:", *lines])


def require_room(preflight: Preflight, store: Path, results: Path, *, local: bool) -> None:
    """Raise WriteError if what is to be written does not fit on the disks, or DeviceError if a model does not fit.

    Memory is only judged where the jobs run on this machine's CPUs (`local`), and by its weights alone, which are sure.
    """
    needed = {store: preflight.store_bytes, results: preflight.table_bytes}
    if _device(store) == _device(results):
        needed = {results: preflight.store_bytes + preflight.table_bytes}
    for place, size in needed.items():
        if size > _free(place):
            raise WriteError(
                f"{place}: the run needs about {_amount(size)} there and {_amount(_free(place))} are free; "
                "free some space, or set 'store' and 'results' to a larger disk"
            )
    memory = psutil.virtual_memory().total
    if local and preflight.device == "cpu" and preflight.weights_bytes > memory:
        raise DeviceError(
            f"memory: a model's weights take {_amount(preflight.weights_bytes)}, this machine has {_amount(memory)}; "
            "use a smaller model or a machine with more memory"
        )


def _existing(path: Path) -> Path:
    """The directory itself, or the nearest above it that exists."""
    return path if path.exists() else _existing(path.absolute().parent)


def _free(path: Path) -> int:
    return shutil.disk_usage(_existing(path)).free


def _device(path: Path) -> int:
    return _existing(path).stat().st_dev


def _amount(size: int) -> str:
    return f"{size / _GIB:,.2f} GiB" if size >= _GIB else f"{size / 2**20:,.1f} MiB"
