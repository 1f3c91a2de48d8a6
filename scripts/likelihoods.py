"""Write a table of likelihoods: perplexity and mean entropy of each record of a sample, by a model.

In: the sample's catalog and, for the perplexity with residues masked, its list of masked copies; the model's descriptor
and the store. Out: a Parquet file.
"""

from argparse import Namespace
from pathlib import Path

from esmflow import command
from esmflow.planned_model import PlannedModel
from esmflow.store.store import Store
from esmflow.tables.likelihoods import write_likelihoods


def main(options: Namespace) -> None:
    model = PlannedModel.load(options.model, options.spec, options.descriptor)
    write_likelihoods(options.catalog, model, Store(options.store), options.table, options.copies)


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    command.add_table_options(arguments)
    arguments.add_argument("--copies", type=Path, help="the list of masked copies")
    arguments.add_argument("--table", type=Path, required=True)
    command.run(main, arguments)
