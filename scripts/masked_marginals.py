"""Write a residue file of masked marginals.

In: the sample's catalog and list of masked copies, the model's descriptor and the store. Out: an HDF5 file, each unique
sequence once.
"""

import json
from argparse import Namespace
from pathlib import Path

from esmflow import command
from esmflow.planned_model import Descriptor, ModelSpec, PlannedModel
from esmflow.store.store import Store
from esmflow.tables.residues import write_masked_marginals


def main(options: Namespace) -> None:
    model = PlannedModel(ModelSpec.of(options.model, options.spec), Descriptor.load(options.descriptor))
    [output] = model.outputs
    write_masked_marginals(options.catalog, options.copies, model, output, Store(options.store), options.file)


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--catalog", type=Path, required=True)
    arguments.add_argument("--copies", type=Path, required=True)
    arguments.add_argument("--model", required=True, help="the model's name in the config")
    arguments.add_argument(
        "--spec", type=json.loads, required=True, help="its config, with this representation alone, as JSON"
    )
    arguments.add_argument("--descriptor", type=Path, required=True)
    arguments.add_argument("--store", type=Path, required=True)
    arguments.add_argument("--file", type=Path, required=True)
    command.run(main, arguments)
