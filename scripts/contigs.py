"""Write a table of contigs: the vectors of each contig's fragments, pooled, of one output of one model.

In: the sample's catalog, the model's descriptor and the store. Out: a Parquet table (contig, fragments, mean, max).
"""

from argparse import Namespace
from pathlib import Path

from esmflow import command
from esmflow.origin import POOLINGS
from esmflow.planned_model import PlannedModel
from esmflow.store.store import Store
from esmflow.tables.contigs import write_contigs
from esmflow.tables.ordered import embedded


def main(options: Namespace) -> None:
    model = PlannedModel.load(options.model, options.spec, options.descriptor)
    with embedded(options.catalog, model, Store(options.store), options.table) as records:
        write_contigs(records, options.catalog, options.pooling, options.table)


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    command.add_table_options(arguments)
    arguments.add_argument("--pooling", nargs="+", choices=POOLINGS, required=True)
    arguments.add_argument("--table", type=Path, required=True)
    command.run(main, arguments)
