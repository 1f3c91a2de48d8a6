"""What masked copies gave: log p of the amino acids at each masked position of a sample's sequences."""

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from esmflow import database
from esmflow.alphabet import AMINO_ACIDS
from esmflow.planned_model import PlannedModel
from esmflow.store.store import Store
from esmflow.tables.located import LocatedRecords


class MaskedValues:
    """The values of masked copies, in the order of the file that lists them.

    values: float32 [copies, 20], log p of the amino acids at the mask, where the copies' values are put.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        copies: Path,
        model: PlannedModel,
        store: Store,
        values: np.ndarray,
    ) -> None:
        """Bring the values into order. Raises IncompleteError if a copy is neither in the store nor skipped."""
        [output] = model.of_copies.outputs
        located = LocatedRecords(connection, copies, model.of_copies, output, store)
        self.copies = connection.read_parquet(database.literal(copies), hive_partitioning=False)
        """The copies: index, sequence (the key of what they are copies of), position, own and more."""
        bounds = self.copies.aggregate("sequence AS key, min(index) AS first, max(index) + 1 AS stop")
        self.sequences: pa.Table = bounds.order("first").to_arrow_table()
        """The sequences in their order: key, and the indices `first` to `stop` - 1 of its copies."""
        self._own = self.copies.select("index", "own").order("index").fetchnumpy()["own"].astype(np.int64)
        self._values = values
        places = database.keep(connection, located.embedded.project("place, index AS target").order("place"))
        for column, rows, targets in located.gather(places):
            values[targets] = column.flatten().to_numpy().reshape(-1, len(AMINO_ACIDS))[rows]
        self.reasons: dict[int, str] = dict(located.skipped.order("index").fetchall())
        """Why copies have no values, by their index."""
        self._skipped = np.array(list(self.reasons), np.int64)
        values[self._skipped] = np.nan
        self.provenance = located.provenance
        """What made the values, as `LocatedRecords.provenance`."""

    def each(self) -> Iterator[tuple[bytes, slice]]:
        """The key of each sequence, in their order, and its copies."""
        columns = (self.sequences[name].to_pylist() for name in ("key", "first", "stop"))
        for key, first, stop in zip(*columns, strict=True):
            yield key, slice(first, stop)

    def missing(self, copies: slice) -> str | None:
        """Why the first of these copies that has no values has none; None if all have."""
        place = int(np.searchsorted(self._skipped, copies.start))
        at = int(self._skipped[place]) if place < len(self._skipped) else copies.stop
        return self.reasons[at] if at < copies.stop else None

    def own(self, copies: slice | np.ndarray) -> np.ndarray:
        """log p of the residue as it is in these copies; of X and the like, NaN: float64 [copies]."""
        own = self._own[copies]
        log_p = self._values[copies].astype(np.float64)
        return np.where(own < 0, np.nan, log_p[np.arange(len(own)), own])

    def marginals(self, copies: slice | np.ndarray) -> np.ndarray:
        """log p(amino acid) - log p(residue as it is): float32 [copies, 20].

        Where the residue is X or the like, the logarithm of the mean p is taken off instead. NaN where there are no
        values.
        """
        log_p, own = self._values[copies].astype(np.float64), self.own(copies)
        mean = np.log(np.exp(log_p).sum(axis=1)) - math.log(len(AMINO_ACIDS))
        marginals: np.ndarray = log_p - np.where(np.isnan(own), mean, own)[:, None]
        return marginals.astype(np.float32)


@contextmanager
def masked_values(
    connection: duckdb.DuckDBPyConnection, copies: Path, model: PlannedModel, store: Store, beside: Path
) -> Iterator[MaskedValues]:
    """The values of the masked copies that a file lists, which lie in a scratch file beside a path meanwhile."""
    beside.parent.mkdir(parents=True, exist_ok=True)
    rows = len(connection.read_parquet(database.literal(copies), hive_partitioning=False).select("index"))
    with tempfile.TemporaryFile(dir=beside.parent) as scratch:
        shape = max(rows, 1), len(AMINO_ACIDS)
        # A disk that fills up under a memory map ends the process.
        if hasattr(os, "posix_fallocate"):  # macOS has none.
            os.posix_fallocate(scratch.fileno(), 0, 4 * math.prod(shape))
        values = np.memmap(scratch, np.float32, "w+", shape=shape)
        yield MaskedValues(connection, copies, model, store, values)
