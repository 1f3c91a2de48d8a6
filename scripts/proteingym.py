"""Write a sample's scores of variants as ProteinGym has them, a CSV file for each protein.

In: the sample's table of variants, and what it was made from: the sheet's lines as they were set against the records,
and the residues. Out: a directory.
"""

from argparse import Namespace
from pathlib import Path

from esmflow import command
from esmflow.tables.proteingym import write_proteingym


def main(options: Namespace) -> None:
    write_proteingym(options.mutants, options.table, options.sequences, options.directory)


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--mutants", type=Path, required=True)
    arguments.add_argument("--table", type=Path, required=True, help="the table of variants")
    arguments.add_argument("--sequences", type=Path, required=True)
    arguments.add_argument("--directory", type=Path, required=True)
    command.run(main, arguments)
