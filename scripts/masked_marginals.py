"""Write a residue file of masked marginals.

In: the sample's catalog and list of masked copies, the model's descriptor and the store. Out: an HDF5 file, each unique
sequence once.
"""

from argparse import Namespace
from pathlib import Path

from esmflow import command
from esmflow.planned_model import PlannedModel
from esmflow.store.store import Store
from esmflow.tables.residues import write_masked_marginals


def main(options: Namespace) -> None:
    model = PlannedModel.load(options.model, options.spec, options.descriptor)
    [output] = model.outputs
    write_masked_marginals(options.catalog, options.copies, model, output, Store(options.store), options.file)


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    command.add_table_options(arguments)
    arguments.add_argument("--copies", type=Path, required=True)
    arguments.add_argument("--file", type=Path, required=True)
    command.run(main, arguments)
