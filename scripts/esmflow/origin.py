"""Where a protein that was made of a contig lies there: what the catalog tells of it."""

from typing import NamedTuple

#: The flag of the first record of a contig that bears the same ID as the contig before it.
ANOTHER_CONTIG = "another_contig"
#: How the vectors of a contig's fragments can be pooled.
POOLINGS = ("mean", "max")


class Origin(NamedTuple):
    """A fragment's place, as GFF counts: from 1, both ends included, on the forward strand. All None for a protein.

    The record that stands for a contig without fragments has no strand and frame, and if it is invalid no ends either.
    """

    contig: str | None = None
    start: int | None = None
    end: int | None = None
    strand: str | None = None
    """`+` or `-`."""
    frame: int | None = None
    """1, 2 or 3: at which letter of its strand the first codon begins, modulo 3."""
