"""Plan what is to be embedded: the sequences wanted minus those in the store, as shards and worker jobs.

In: a file of sequences per sample, a descriptor per model, and the store. Out: a directory with plan.json, a JSON file
per worker job and a Parquet file (key, residues) per shard.
"""

import json
from argparse import Namespace
from math import inf
from pathlib import Path

from esmflow import command
from esmflow.errors import DataError
from esmflow.inputs.samples import read_samples
from esmflow.plan.plan import plan
from esmflow.plan.sizes import Sizes
from esmflow.planned_model import load_models
from esmflow.results import Results
from esmflow.store.store import Store


def main(options: Namespace) -> None:
    results = Results(options.results)
    models, refused = load_models(options.models, results)
    if not models:
        raise DataError("; ".join(refused.values()))
    plan(
        models,
        list(read_samples(options.samples)),
        results,
        Store(options.store),
        Sizes(
            target_minutes=options.target_minutes,
            max_jobs=options.max_jobs,
            gpus_per_job=options.gpus_per_job,
            threads=options.threads,
            tokens_per_pack=options.tokens_per_pack,
            part_bytes=options.part_mb * 1e6,
            mix_models=options.mix_models == "True",
            local=options.local == "True",
        ),
        variants=options.variants,
        refused_models=refused,
    )


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--results", type=Path, required=True, help="the run's directory of results")
    arguments.add_argument("--samples", type=Path, required=True, help="the sample sheet")
    arguments.add_argument("--models", type=json.loads, required=True, help="the config's models, as JSON")
    arguments.add_argument("--store", type=Path, required=True)
    arguments.add_argument("--target-minutes", type=float, required=True, help="about how long a shard takes")
    arguments.add_argument("--max-jobs", type=int, required=True)
    arguments.add_argument("--gpus-per-job", type=int, required=True)
    arguments.add_argument("--threads", type=int, default=1, help="CPU threads of a job")
    arguments.add_argument("--tokens-per-pack", type=command.number_or_auto, help="a number, or auto")
    arguments.add_argument(
        "--part-mb", type=float, default=inf, help="megabytes of vectors beyond which a table is written in parts"
    )
    arguments.add_argument("--mix-models", choices=["True", "False"], default="False", help="several models in a job")
    arguments.add_argument(
        "--local", choices=["True", "False"], default="False", help="whether jobs run on this machine"
    )
    arguments.add_argument("--variants", action="store_true", help="score the variants that the results have")
    command.run(main, arguments)
