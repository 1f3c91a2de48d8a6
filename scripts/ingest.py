"""Stream a sample's FASTA files into its catalog.

In: FASTA files, plain or compressed. Out: the catalog (a Parquet row per record: index, id, description, length,
key, status, reason, flags, and where there are contigs contig, start, end, strand, frame) and the sequences (a Parquet
row per valid record: key, length, residues).
"""

from argparse import Namespace
from pathlib import Path

from esmflow import command
from esmflow.errors import ConfigError, DataError
from esmflow.inputs.catalog import ingest, refuse
from esmflow.inputs.fasta import PRESUMED, Fasta
from esmflow.inputs.kinds import KINDS, genetic_code

NO_CODE = "none"


def fastas(options: Namespace) -> list[Fasta]:
    count = len(options.fastas)
    kinds, codes = (values * count if len(values) == 1 else values for values in (options.kind, options.code))
    for option, values in (("kind", kinds), ("code", codes)):
        if len(values) != count:
            raise ConfigError(
                f"--{option}: {len(values)} {option}s for {count} files; give one for each, or one for all"
            )
    return [
        Fasta(path, kind, genetic_code(kind, "" if code == NO_CODE else code), options.chunk)
        for path, kind, code in zip(options.fastas, kinds, codes, strict=True)
    ]


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
        choices=KINDS,
        default=[PRESUMED],
        help="what the records of each file are, or of all; unless it is said, a file of nucleotides is refused",
    )
    arguments.add_argument(
        "--code",
        nargs="+",
        default=[NO_CODE],
        help=f"the genetic code of each file, or of all, by NCBI's number; {NO_CODE}: that of its kind",
    )
    arguments.add_argument("--chunk", type=int, default=500, help="nucleotides of a chunk of six_frame")
    arguments.add_argument("--sample", required=True)
    arguments.add_argument("--catalog", type=Path, required=True)
    arguments.add_argument("--sequences", type=Path, required=True)
    arguments.add_argument("--invalid", choices=["skip", "fail"], default="skip")
    arguments.add_argument(
        "--refuse", action="store_true", help="if a file cannot be used, write that to the outputs and end with 0"
    )
    command.run(main, arguments)
