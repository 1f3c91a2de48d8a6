"""Work through the shards of one job, committing each to the store.

In: a job (JSON), and the shards and weights that it names. Out: the job's receipt (JSON), written last; meanwhile a
heartbeat (JSON, and as Prometheus metrics). On SIGTERM, SIGINT or SIGUSR1, and before the time limit, it ends with 75.
"""

import time
from argparse import Namespace
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from esmflow import command
from esmflow.job import Job
from esmflow.store.store import Store
from esmflow.worker.cores import usable_threads
from esmflow.worker.gpus import claimed_gpus, visible_gpus
from esmflow.worker.start import Start
from esmflow.worker.worker import work


def main(options: Namespace) -> None:
    # What a scheduler gave to an allocation is its own; else the jobs of this machine share its GPUs out.
    in_allocation = options.time_limit > 0
    with nullcontext(visible_gpus()[: options.gpus]) if in_allocation else claimed_gpus(options.gpus) as gpus:
        processes = len(gpus) or options.processes
        threads = max(usable_threads(options.threads) // processes, 1)
        job = Job.load(options.job)
        kernels = dict(pair.split("=") for pair in options.attention)
        models = {
            name: replace(model, attention=kernels.get(name, model.attention)) for name, model in job.models.items()
        }
        work(
            replace(job, models=models),
            Store(options.store),
            options.receipt,
            Start(tuple(gpus), threads, options.tokens_per_pack, processes),
            heartbeats=options.heartbeats,
            seconds=60 * options.time_limit - (time.time() - options.job_began) if in_allocation else float("inf"),
        )


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--job", type=Path, required=True)
    arguments.add_argument("--store", type=Path, required=True)
    arguments.add_argument("--receipt", type=Path, required=True)
    arguments.add_argument("--heartbeats", type=Path, required=True, help="directory of the heartbeats")
    arguments.add_argument("--gpus", type=int, default=0, help="take so many of the visible GPUs; 0 is the CPU")
    arguments.add_argument("--threads", type=int, default=1, help="CPU threads, of all processes together")
    arguments.add_argument("--processes", type=int, default=1, help="processes on a CPU; of GPUs each has one")
    arguments.add_argument("--attention", type=lambda text: text.split(","), default=[], help="MODEL=KERNEL,...")
    arguments.add_argument("--tokens-per-pack", type=command.number_or_auto, help="a number, or auto")
    arguments.add_argument("--time-limit", type=float, default=0, help="minutes of the allocation; 0 is no limit")
    arguments.add_argument(
        "--job-began", type=float, default=time.time(), help="when the allocation began, as Unix time; else now"
    )
    command.run(main, arguments)
