"""Work through the shards of one job, committing each to the store.

In: a job (JSON), and the shards and weights that it names. Out: the job's receipt (JSON), written last; meanwhile a
heartbeat (JSON, and as Prometheus metrics). On SIGTERM, SIGINT or SIGUSR1, and before the time limit, it ends with 75.
"""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from esmflow import command
from esmflow.job import Job
from esmflow.store.store import Store
from esmflow.worker.gpus import visible_gpus
from esmflow.worker.start import Start
from esmflow.worker.worker import work


def main(options: Namespace) -> None:
    gpus = [] if options.device == "cpu" else visible_gpus()
    processes = options.processes if options.device == "cpu" or not gpus else len(gpus)
    job = Job.load(options.job)
    kernels = dict(pair.split("=") for pair in options.attention)
    models = {name: replace(model, attention=kernels.get(name, model.attention)) for name, model in job.models.items()}
    work(
        replace(job, models=models),
        Store(options.store),
        options.receipt,
        Start(options.device, max(options.threads // processes, 1), options.tokens_per_pack),
        processes=processes,
        heartbeats=options.heartbeats,
        seconds=60 * options.time_limit or float("inf"),
    )


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--job", type=Path, required=True)
    arguments.add_argument("--store", type=Path, required=True)
    arguments.add_argument("--receipt", type=Path, required=True)
    arguments.add_argument("--heartbeats", type=Path, required=True, help="directory of the heartbeats")
    arguments.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    arguments.add_argument("--threads", type=int, default=1, help="CPU threads, of all processes together")
    arguments.add_argument("--processes", type=int, default=1, help="processes without a GPU; else one for each GPU")
    arguments.add_argument("--attention", type=lambda text: text.split(","), default=[], help="MODEL=KERNEL,...")
    arguments.add_argument("--tokens-per-pack", type=command.number_or_auto, help="a number, or auto")
    arguments.add_argument("--time-limit", type=float, default=0, help="minutes of the allocation; 0 is no limit")
    command.run(main, arguments)
