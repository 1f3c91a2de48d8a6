"""Write a residue file: what grows with a sample's sequences, such as per_tok, logits, contacts or marginals.

In: the sample's catalog, the model's descriptor and the store. Out: an HDF5 file, each unique sequence once.
"""

from argparse import Namespace
from pathlib import Path

from esmflow import command
from esmflow.planned_model import PlannedModel
from esmflow.store.store import Store
from esmflow.tables.residues import write_residues


def main(options: Namespace) -> None:
    model = PlannedModel.load(options.model, options.spec, options.descriptor)
    [output] = model.outputs
    write_residues(options.catalog, model, output, Store(options.store), options.file)


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    command.add_table_options(arguments)
    arguments.add_argument("--file", type=Path, required=True)
    command.run(main, arguments)
