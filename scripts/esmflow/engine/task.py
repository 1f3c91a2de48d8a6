"""Sequences that were submitted to an engine together, from their pieces to what has come of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from esmflow.architecture import Architecture
from esmflow.model.pack import Pack
from esmflow.representation import Output, Values, combine
from esmflow.treatment import Treatment


@dataclass(frozen=True)
class Embedded:
    """What some sequences have, row by row."""

    values: dict[Output, Values]
    """For each output of vectors a float32 array [sequences, width]; of what grows with the protein a list, of a
    float32 array for each sequence in the shape that the representation's entry tells. Not to be used where there is a
    reason."""
    reasons: list[str | None]
    """Why a sequence has nothing; None for those that have all."""


@dataclass
class Task:
    """Sequences submitted together, their pieces, and what has come of them."""

    ticket: int
    sequences: Sequence[bytes]
    outputs: Sequence[Output]
    progress: Callable[[int, int, float], None] | None
    treatment: Treatment
    architecture: Architecture
    rows: np.ndarray = field(init=False)
    """int64 [pieces]: which sequence each is of."""
    bounds: np.ndarray = field(init=False)
    """int64 [pieces, 4]: as `Treatment.all_pieces` gives them."""
    pieces: Sequence[bytes] = field(init=False)
    """Their residues."""
    tokens: np.ndarray = field(init=False)
    """int64 [pieces], with BOS and EOS."""
    computed: list[Output] = field(init=False)
    """The outputs, and what else it takes to make them of pieces."""
    results: dict[Output, Values] = field(init=False)
    """Of the pieces."""
    reasons: list[str | None] = field(init=False)
    left: int = field(init=False)

    def __post_init__(self) -> None:
        lengths = np.fromiter(map(len, self.sequences), np.int64, len(self.sequences))
        self.rows, self.bounds = self.treatment.all_pieces(lengths)
        starts, stops = self.bounds[:, :2].T
        self.tokens = stops - starts + 2
        self.pieces = self.sequences
        if not np.array_equal(stops - starts, lengths):
            stretches = zip(self.rows.tolist(), starts.tolist(), stops.tolist(), strict=True)
            self.pieces = [self.sequences[row][start:stop] for row, start, stop in stretches]
        means = {Output(output.layer, "mean") for output in self.outputs if output.kind.needs_mean}
        self.computed = sorted({*self.outputs, *means})
        self.reasons = [None] * len(self.sequences)
        self.left = len(self.rows)
        self.results = {output: self._nothing(output) for output in self.computed}

    def _nothing(self, output: Output) -> Values:
        shape = output.kind.shape(0, self.architecture)
        if output.ragged:
            return [np.empty(shape, np.float32)] * self.left
        return np.empty((self.left, *shape), np.float32)

    def pack(self, members: np.ndarray) -> Pack:
        """These pieces laid end to end."""
        bounds = self.bounds[members]
        return Pack.of([self.pieces[member] for member in members.tolist()], bounds[:, 2:] - bounds[:, :1])

    def take(self, members: np.ndarray, values: dict[Output, Values]) -> None:
        """Keep a copy of the vectors that these pieces have, and what else they have as it is."""
        for output, of_members in values.items():
            results = self.results[output]
            if isinstance(results, np.ndarray):
                results[members] = of_members
            else:
                for member, value in zip(members.tolist(), of_members, strict=True):
                    results[member] = value

    def embedded(self) -> Embedded:
        """The results of the sequences from those of their pieces."""
        firsts = np.flatnonzero(self.bounds[:, 0] == 0)
        counts = np.diff(firsts, append=len(self.rows))
        values = {output: self._chosen(output, firsts) for output in self.outputs}
        kept = self.bounds[:, 3] - self.bounds[:, 2]
        for row in np.flatnonzero(counts > 1).tolist():
            pieces = slice(firsts[row], firsts[row] + counts[row])
            for output in self.outputs:
                means = self.results.get(Output(output.layer, "mean"), [])[pieces]
                values[output][row] = combine(output, self.results[output][pieces], kept[pieces].tolist(), means)
        for row in [row for row, reason in enumerate(self.reasons) if reason]:
            for output in self.outputs:
                values[output][row] = np.full(output.kind.shape(0, self.architecture), np.nan, np.float32)
        return Embedded(values, self.reasons)

    def _chosen(self, output: Output, members: np.ndarray) -> Values:
        results = self.results[output]
        if len(members) == len(results):
            return results
        return results[members] if isinstance(results, np.ndarray) else [results[member] for member in members]
