"""Stream a sample's FASTA files into its catalog.

In: FASTA files, plain or compressed. Out: the catalog (a Parquet row per record: index, id, description, length,
key, status, reason, flags) and the sequences (a Parquet row per valid record: key, length, residues).
"""

from argparse import Namespace
from pathlib import Path

from esmflow import command
from esmflow.errors import ConfigError, DataError
from esmflow.inputs.catalog import ingest, refuse
from esmflow.inputs.samples import KINDS, PRESUMED, Fasta


def fastas(options: Namespace) -> list[Fasta]:
    kinds = options.kind * len(options.fastas) if len(options.kind) == 1 else options.kind
    if len(kinds) != len(options.fastas):
        raise ConfigError(
            f"--kind: {len(kinds)} kinds for {len(options.fastas)} files; give one for each, or one for all"
        )
    return [Fasta(path, kind) for path, kind in zip(options.fastas, kinds, strict=True)]


def main(options: Namespace) -> None:
    outputs = options.catalog, options.sequences
    try:
        ingest(options.sample, fastas(options), *outputs, fail_on_invalid=options.invalid == "fail")
    except DataError as error:
        if not options.refuse:
            raise
        refuse(error, *outputs)


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("fastas", type=Path, nargs="+", metavar="fasta")
    arguments.add_argument(
        "--kind",
        nargs="+",
        choices=[PRESUMED, *KINDS],
        default=[PRESUMED],
        help="what the records of each file are, or of all; unless it is said, a file of nucleotides is refused",
    )
    arguments.add_argument("--sample", required=True)
    arguments.add_argument("--catalog", type=Path, required=True)
    arguments.add_argument("--sequences", type=Path, required=True)
    arguments.add_argument("--invalid", choices=["skip", "fail"], default="skip")
    arguments.add_argument(
        "--refuse", action="store_true", help="if a file cannot be used, write that to the outputs and end with 0"
    )
    command.run(main, arguments)
