"""Work through the shards of one job with one model, committing each to the store.

In: a job (JSON) and the shards and descriptor that it names. Out: the job's receipt (JSON), written last.
"""

from argparse import Namespace
from pathlib import Path

from esmflow import command
from esmflow.attention import KERNELS
from esmflow.store import Store
from esmflow.worker import work


def main(options: Namespace) -> None:
    work(
        options.job,
        Store(options.store),
        options.receipt,
        device=options.device,
        threads=options.threads,
        attention=options.attention,
        tokens_per_pack=None if options.tokens_per_pack == "auto" else int(options.tokens_per_pack),
    )


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--job", type=Path, required=True)
    arguments.add_argument("--store", type=Path, required=True)
    arguments.add_argument("--receipt", type=Path, required=True)
    arguments.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    arguments.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments.add_argument("--attention", choices=["auto", *KERNELS], default="auto")
    arguments.add_argument("--tokens-per-pack", default="auto", help="a number, or auto")
    command.run(main, arguments)
