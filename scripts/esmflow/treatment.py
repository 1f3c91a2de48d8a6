"""How sequences go through a model: whole, truncated, or in overlapping windows.

A treatment is written `whole`, `truncate-1022` (the first 1022 residues) or `window-1022-256` (windows of 1022 residues
that overlap by 256).
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from esmflow.descriptor import LETTERS, Architecture
from esmflow.spec import WHOLE, Output


class Piece(NamedTuple):
    """A stretch of a sequence that goes through the model, and the part of it whose residues are kept."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


def pieces(length: int, treatment: str) -> list[Piece]:
    """The pieces of a sequence of `length` residues, in order; what they keep adjoins without gap or overlap.

    The last window ends with the sequence. A residue is kept from the window in which it lies furthest from an edge,
    the earlier one in a tie.
    """
    kind, size, overlap = _parse(treatment)
    if kind == WHOLE or length <= size:
        return [Piece(0, length, 0, length)]
    if kind == "truncate":
        return [Piece(0, size, 0, size)]
    starts = [*range(0, length - size, size - overlap), length - size]
    # Residue i is further from the edges of the later of two windows if i - later > earlier + size - 1 - i.
    cuts = [(earlier + later + size - 1) // 2 + 1 for earlier, later in pairwise(starts)]
    return [
        Piece(start, start + size, first, last)
        for start, first, last in zip(starts, [0, *cuts], [*cuts, length], strict=True)
    ]


def cost(shape: Architecture, lengths: np.ndarray, treatment: str, layers: int) -> np.ndarray:
    """FLOPs of the first `layers` layers for sequences of so many residues, float64 [sequences]."""
    kind, size, overlap = _parse(treatment)
    if kind == WHOLE:
        return shape.flops(lengths + 2, layers)
    windows = np.ones_like(lengths) if kind == "truncate" else _windows(lengths, size, overlap)
    result: np.ndarray = windows * shape.flops(np.minimum(lengths, size) + 2, layers)
    return result


def kept(lengths: np.ndarray, treatment: str) -> np.ndarray:
    """How many residues are kept of sequences of so many, int [sequences]."""
    kind, size, _ = _parse(treatment)
    return np.minimum(lengths, size) if kind == "truncate" else lengths


def value_bytes(shape: Architecture, kept: np.ndarray, output: Output) -> np.ndarray:
    """Bytes of an output's float32 values for sequences of so many kept residues, int64 [sequences]."""
    numbers = {
        "per_tok": kept * shape.embed_dim,
        "logits": kept * LETTERS,
        "contacts": kept.astype(np.int64) ** 2,
    }.get(output.representation, np.full_like(kept, shape.embed_dim))
    result: np.ndarray = 4 * numbers.astype(np.int64)
    return result


def flag(length: int, treatment: str) -> str | None:
    """What the status file says of a sequence of that length: `truncated:1022`, `windowed:n` or nothing."""
    kind, size, overlap = _parse(treatment)
    if kind == WHOLE or length <= size:
        return None
    return f"truncated:{size}" if kind == "truncate" else f"windowed:{_windows(np.array(length), size, overlap)}"


def _windows(lengths: np.ndarray, size: int, overlap: int) -> np.ndarray:
    beyond: np.ndarray = np.maximum(lengths - size, 0)
    return -(-beyond // (size - overlap)) + 1


def _parse(treatment: str) -> tuple[str, int, int]:
    kind, *numbers = treatment.split("-")
    size, overlap = [*map(int, numbers), 0, 0][:2]
    return kind, size, overlap
