"""How sequences go through a model: whole, truncated, or in overlapping windows."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from esmflow.architecture import Architecture


class Piece(NamedTuple):
    """A stretch of a sequence that goes through the model, and the part of it whose residues are kept."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


class Treatment(NamedTuple):
    """What is done with a sequence for its length.

    Written `whole`, `truncate-1022` (the first 1022 residues) or `window-1022-256` (windows of 1022 residues that
    overlap by 256). A masked copy is cut before it is masked: it goes through as it is, which is written `masked`.
    """

    name: str
    size: int = 0
    overlap: int = 0

    def __str__(self) -> str:
        numbers = {"truncate": (self.size,), "window": (self.size, self.overlap)}.get(self.name, ())
        return "-".join([self.name, *map(str, numbers)])

    @classmethod
    def parse(cls, text: str) -> "Treatment":
        """The inverse of `str`."""
        name, *numbers = text.split("-")
        return cls(name, *map(int, numbers))

    @property
    def as_it_is(self) -> bool:
        """Whether nothing is done with any sequence."""
        return self in (WHOLE, MASKED)

    def pieces(self, length: int) -> list[Piece]:
        """The pieces of a sequence of `length` residues, in order; what they keep adjoins without gap or overlap.

        The last window ends with the sequence. A residue is kept from the window in which it lies furthest from an
        edge, the earlier one in a tie.
        """
        size = self.size
        if self.as_it_is or length <= size:
            return [Piece(0, length, 0, length)]
        if self.name == "truncate":
            return [Piece(0, size, 0, size)]
        starts = [*range(0, length - size, size - self.overlap), length - size]
        # Residue i is further from the edges of the later of two windows if i - later > earlier + size - 1 - i.
        cuts = [(earlier + later + size - 1) // 2 + 1 for earlier, later in pairwise(starts)]
        return [
            Piece(start, start + size, first, last)
            for start, first, last in zip(starts, [0, *cuts], [*cuts, length], strict=True)
        ]

    def all_pieces(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pieces of sequences of so many residues (int64), in order.

        Returns the number of each piece's sequence, int64 [pieces], and start, stop, keep_start and keep_stop of each,
        int64 [pieces, 4].
        """
        long = np.zeros(0, np.int64) if self.as_it_is else np.flatnonzero(lengths > self.size)
        divided = [self.pieces(length) for length in lengths[long].tolist()]
        counts = np.ones_like(lengths)
        counts[long] = [len(pieces) for pieces in divided]
        rows = np.repeat(np.arange(len(lengths)), counts)
        bounds = np.zeros((len(rows), 4), np.int64)
        bounds[:, 1] = bounds[:, 3] = lengths[rows]
        if divided:
            bounds[np.isin(rows, long)] = np.concatenate([np.array(pieces) for pieces in divided])
        return rows, bounds

    def cost(self, architecture: Architecture, lengths: np.ndarray, layers: int) -> np.ndarray:
        """FLOPs of the first `layers` layers for sequences of so many residues: float64 [sequences]."""
        if self.as_it_is:
            return architecture.flops(lengths + 2, layers)
        windows = np.ones_like(lengths) if self.name == "truncate" else self._windows(lengths)
        cost: np.ndarray = windows * architecture.flops(np.minimum(lengths, self.size) + 2, layers)
        return cost

    def kept(self, lengths: np.ndarray) -> np.ndarray:
        """How many residues are kept of sequences of so many: int [sequences]."""
        return np.minimum(lengths, self.size) if self.name == "truncate" else lengths

    def flag(self, length: int) -> str | None:
        """What the status file says of a sequence of that length: `truncated:1022`, `windowed:n` or nothing."""
        if self.as_it_is or length <= self.size:
            return None
        return f"truncated:{self.size}" if self.name == "truncate" else f"windowed:{self._windows(np.array(length))}"

    def _windows(self, lengths: np.ndarray) -> np.ndarray:
        beyond: np.ndarray = np.maximum(lengths - self.size, 0)
        return -(-beyond // (self.size - self.overlap)) + 1


#: The treatment of a sequence that goes through the model as it is.
WHOLE = Treatment("whole")
#: That of a masked copy.
MASKED = Treatment("masked")
