"""Stream a sample's FASTA files into its catalog.

In: FASTA files, plain or compressed. Out: the catalog (a Parquet row per record: index, id, description, length,
key, status, reason, flags) and the sequences (a Parquet row per valid record: key, length, residues).
"""

from pathlib import Path

from esmflow import command
from esmflow.inputs.catalog import ingest

if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("fastas", type=Path, nargs="+", metavar="fasta")
    arguments.add_argument("--sample", required=True)
    arguments.add_argument("--catalog", type=Path, required=True)
    arguments.add_argument("--sequences", type=Path, required=True)
    arguments.add_argument("--invalid", choices=["skip", "fail"], default="skip")
    command.run(
        lambda options: ingest(
            options.sample,
            options.fastas,
            options.catalog,
            options.sequences,
            fail_on_invalid=options.invalid == "fail",
        ),
        arguments,
    )
