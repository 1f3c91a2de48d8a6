"""Set the lines of the sheet of variants against a sample's records.

In: the sheet, the sample sheet, the sample's catalog and file of sequences. Out: a Parquet file with a row for each
line of the sample, or for each record that the line is of.
"""

from argparse import Namespace
from pathlib import Path

import pyarrow.compute as pc
from esmflow import command
from esmflow.inputs.samples import read_samples
from esmflow.inputs.variants import read_variants, write_mutants


def main(options: Namespace) -> None:
    lines = read_variants(options.variants, read_samples(options.samples))
    own = lines.filter(pc.equal(lines["sample"], options.sample))
    write_mutants(own, options.catalog, options.sequences, options.mutants)


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--variants", type=Path, required=True, help="the sheet of variants")
    arguments.add_argument("--samples", type=Path, required=True, help="the sample sheet")
    arguments.add_argument("--sample", required=True)
    arguments.add_argument("--catalog", type=Path, required=True)
    arguments.add_argument("--sequences", type=Path, required=True)
    arguments.add_argument("--mutants", type=Path, required=True)
    command.run(main, arguments)
