"""Write a sample's table of variants: what the models make of each line of the sheet.

In: the sample's lines as they were set against its records, the models' descriptors and lists of masked copies, and the
store. Out: a Parquet file.
"""

import json
from argparse import Namespace
from pathlib import Path

from esmflow import command
from esmflow.planned_model import load_models
from esmflow.results import Results
from esmflow.store.store import Store
from esmflow.tables.variants import write_variants


def main(options: Namespace) -> None:
    results = Results(options.results)
    models, _ = load_models(options.models, results)
    copies = {model.name: results.masked(options.sample, model.name) for model in models}
    write_variants(
        results.mutants(options.sample), models, copies, Store(options.store), results.variants(options.sample)
    )


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--sample", required=True)
    arguments.add_argument("--models", type=json.loads, required=True, help="the config's models, as JSON")
    arguments.add_argument("--results", type=Path, required=True)
    arguments.add_argument("--store", type=Path, required=True)
    command.run(main, arguments)
