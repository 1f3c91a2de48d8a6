"""Write a sample's status file: what became of each record.

In: the sample's catalog, the models' descriptors and the store. Out: a TSV (id, length, status, reason, flags).
"""

import json
from argparse import Namespace
from pathlib import Path

from esmflow import command
from esmflow.planned_model import load_models
from esmflow.results import Results
from esmflow.store.store import Store
from esmflow.tables.status import write_status


def main(options: Namespace) -> None:
    results = Results(options.results)
    models, _ = load_models(options.models, results)
    write_status(
        results.catalog(options.sample),
        models,
        Store(options.store),
        results.status(options.sample),
        {model.name: results.masked(options.sample, model.name) for model in models if model.masks},
    )


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--sample", required=True)
    arguments.add_argument("--models", type=json.loads, required=True, help="the config's models, as JSON")
    arguments.add_argument("--results", type=Path, required=True)
    arguments.add_argument("--store", type=Path, required=True)
    command.run(main, arguments)
