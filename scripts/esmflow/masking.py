"""Masked copies: a sequence with one position masked, whose text is its identity as that of a sequence is.

A copy of a long protein is of the window in which the position lies furthest from an edge.
"""

from collections.abc import Iterable, Iterator

from esmflow.alphabet import MASK_LETTER
from esmflow.treatment import Treatment

_MASK = MASK_LETTER.encode()


def masked_copies(residues: bytes, treatment: Treatment, positions: Iterable[int]) -> Iterator[bytes]:
    """The copies of a sequence with each of these positions masked, which count from 0, ascend, and are all kept."""
    pieces = iter(treatment.pieces(len(residues)))
    piece = next(pieces)
    for position in positions:
        while position >= piece.keep_stop:
            piece = next(pieces)
        yield residues[piece.start : position] + _MASK + residues[position + 1 : piece.stop]
