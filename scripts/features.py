"""Write a feature table: a sample's embedded records, in file order, with their vectors of one output of one model.

In: the sample's catalog, the model's descriptor and the store. Out: a Parquet table (id, length, embedding), or with
--part-mb a directory of Parquet files that are one table.
"""

from argparse import Namespace
from pathlib import Path

from esmflow import command
from esmflow.planned_model import PlannedModel
from esmflow.store.store import Store
from esmflow.tables.features import write_table


def main(options: Namespace) -> None:
    model = PlannedModel.load(options.model, options.spec, options.descriptor)
    [output] = model.outputs
    part_bytes = None if options.part_mb is None else max(int(options.part_mb * 1e6), 1)
    write_table(options.catalog, model, output, Store(options.store), options.table, part_bytes)


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    command.add_table_options(arguments)
    arguments.add_argument("--table", type=Path, required=True)
    arguments.add_argument("--part-mb", type=float, help="megabytes of vectors in a file of the table")
    command.run(main, arguments)
