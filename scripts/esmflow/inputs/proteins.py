"""Kinds `protein` and `protein?`: the records are the proteins."""

from collections.abc import Iterator
from pathlib import Path

from esmflow.errors import DataError
from esmflow.inputs import fasta


def read(file: fasta.Fasta, _scratch: Path) -> Iterator[tuple[int, fasta.Record]]:
    """The records of a file, each with its line.

    Raises DataError at its end if nine in ten were nucleotides, unless the file was said outright to be of proteins.
    """
    judged = nucleotides = 0
    for raw in fasta.read(file.path):
        record = fasta.clean(raw)
        if raw.too_long or len(record.residues) >= fasta.NUCLEOTIDES_LETTERS:
            judged += 1
            nucleotides += fasta.NUCLEOTIDES_FLAG in record.flags
        yield raw.line, record
    if file.kind == fasta.PRESUMED and judged and 10 * nucleotides >= 9 * judged:
        raise DataError(
            f"{file.path}: {nucleotides:,} of {judged:,} records of at least {fasta.NUCLEOTIDES_LETTERS} letters are "
            "nothing but nucleotides; give proteins, or write in the sheet's column 'kind' 'six_frame' or 'genes' for "
            "the proteins that they encode, or 'protein' if they are proteins"
        )
