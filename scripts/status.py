"""Write a sample's status file: what became of each record.

In: the sample's catalog, the models' descriptors and the store. Out: a TSV (id, length, status, reason, flags).
"""

import json
from argparse import Namespace
from pathlib import Path

from esmflow import command
from esmflow.descriptor import Descriptor
from esmflow.spec import ModelSpec
from esmflow.store.store import Store
from esmflow.tables.features import write_status


def main(options: Namespace) -> None:
    write_status(
        options.catalog,
        [ModelSpec.of(name, config) for name, config in options.models.items()],
        {model: Descriptor.load(options.descriptors / f"{model}.json") for model in options.models},
        Store(options.store),
        options.status,
    )


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--catalog", type=Path, required=True)
    arguments.add_argument("--models", type=json.loads, required=True, help="the config's models, as JSON")
    arguments.add_argument("--descriptors", type=Path, required=True, help="directory of {model}.json")
    arguments.add_argument("--store", type=Path, required=True)
    arguments.add_argument("--status", type=Path, required=True)
    command.run(main, arguments)
