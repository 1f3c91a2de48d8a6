"""What the records of a FASTA file may be. `KINDS` is the table: an entry is all that the rest knows of a kind."""

# The rules import this table, so what reads a kind imports its libraries itself: they take long.
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from esmflow.errors import ConfigError
from esmflow.inputs import genes, proteins, six_frame
from esmflow.inputs.fasta import PRESUMED, Fasta, Record


@dataclass(frozen=True)
class Kind:
    """What the records of a file are."""

    read: Callable[[Fasta, Path], Iterator[tuple[int, Record]]]
    """The proteins of a file and the line of each; the directory is for temporary files."""
    codes: Callable[[], Collection[int]] | None = None
    """The genetic codes that there are for it, as NCBI numbers them; None for proteins."""
    chunks: bool = False
    """Whether it cuts records to chunks."""

    @property
    def of_contigs(self) -> bool:
        """Whether the records are contigs, and each protein has an origin there."""
        return self.codes is not None


#: By their names in the sample sheet.
KINDS = {
    PRESUMED: Kind(proteins.read),
    "protein": Kind(proteins.read),
    "six_frame": Kind(six_frame.read, six_frame.codes, chunks=True),
    "genes": Kind(genes.read, genes.codes),
}


def genetic_code(kind: str, text: str) -> int | None:
    """The genetic code that was written for a kind; None if that is empty. Raises ConfigError if there is none such."""
    codes = KINDS[kind].codes
    if not text:
        return None
    if not codes:
        raise ConfigError(f"a genetic code is of no use to proteins, and {text!r} is given; leave 'code' empty")
    known = {str(code): code for code in sorted(codes())}
    if text not in known:
        raise ConfigError(f"{kind} has no genetic code {text!r}; give one of {', '.join(known)}, or none")
    return known[text]
