"""Residue files: what grows with a protein's length, unique sequences once, in HDF5."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import duckdb
import h5py
import numpy as np
import pyarrow as pa

from esmflow import database
from esmflow.architecture import Architecture
from esmflow.errors import ConfigError
from esmflow.planned_model import PlannedModel
from esmflow.representation import Output, Ragged
from esmflow.store.store import Store, metadata_for
from esmflow.tables import hdf5
from esmflow.tables.located import LocatedRecords
from esmflow.tables.masked import masked_values

_RECORDS = 50_000

log = logging.getLogger(__name__)


def write_residues(catalog: Path, model: PlannedModel, output: Output, store: Store, target: Path) -> None:
    """Write a sample's residue file of a ragged output, sequence by sequence.

    Datasets: `embeddings` [sum of residues, embed_dim] (for logits the vocabulary), in float32 or, if the vectors are
    so, float16; or `entropy` [sum of residues], `marginals` [sum of residues, 20], or `contacts`, flat, a map after the
    other; `offsets`, int64 [sequences + 1], in rows of these; and for each embedded record in file order `id`, `length`
    and `sequence`, its number in `offsets`. Raises IncompleteError as `features.write_table` does, and ConfigError for
    an output of one vector per protein.
    """
    with database.connect(target) as connection, _writing(target, model, output) as file:
        located = LocatedRecords(connection, catalog, model, output, store)
        places = located.embedded.select("place").distinct()
        sequences = database.keep(
            connection, places.project("place, row_number() OVER (ORDER BY place) - 1 AS target").order("place")
        )
        for column, rows, _ in located.gather(sequences):
            for number in rows.tolist():
                file.add(column[number].values.to_numpy())
        records = located.embedded.set_alias("records").join(sequences.set_alias("sequences"), "place")
        file.end(records.project("index, id, length, target AS sequence"), located.provenance)


def write_masked_marginals(
    catalog: Path, copies: Path, model: PlannedModel, output: Output, store: Store, target: Path
) -> None:
    """Write the same of masked marginals, from the values of the masked copies that a file lists.

    A sequence of which any copy was skipped is left out.
    """
    with (
        database.connect(target) as connection,
        masked_values(connection, copies, model, store, target) as values,
        _writing(target, model, output) as file,
    ):
        keys = []
        for key, rows in values.each():
            if not values.missing(rows):
                keys.append(key)
                file.add(values.marginals(rows))
        numbers = pa.table({"key": pa.array(keys, pa.binary()), "sequence": np.arange(len(keys))})
        sequences = connection.from_arrow(numbers).set_alias("sequences")
        records = connection.read_parquet(database.literal(catalog), hive_partitioning=False).set_alias("records")
        numbered = records.join(sequences, "key").project("index, id, length, sequence")
        file.end(numbered, values.provenance | model.provenance(output))


class _ResidueFile:
    """A residue file to which sequences are added, and at last the records."""

    def __init__(self, file: hdf5.Hdf5, kind: Ragged, architecture: Architecture, dtype: np.dtype) -> None:
        self._file, self._row = file, _row_shape(kind, architecture)
        self._data = file.create_dataset(kind.dataset, (0, *self._row), dtype, maxshape=(None, *self._row), chunks=True)
        self._offsets = [0]

    @property
    def sequences(self) -> int:
        """How many were added."""
        return len(self._offsets) - 1

    def add(self, values: np.ndarray) -> None:
        """Add a sequence's values, in any shape."""
        rows = values.reshape(-1, *self._row)
        self._data.resize(self._offsets[-1] + len(rows), axis=0)
        self._data[self._offsets[-1] :] = rows
        self._offsets.append(self._offsets[-1] + len(rows))
        self._file.check()

    def end(self, records: duckdb.DuckDBPyRelation, provenance: Mapping[str, str]) -> None:
        """Add the records, of which a relation has index, id, length and sequence, and what made the values."""
        self._file["offsets"] = np.array(self._offsets, dtype=np.int64)
        columns = {"id": h5py.string_dtype(), "length": np.int32, "sequence": np.int64}
        datasets = {
            name: self._file.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=True)
            for name, dtype in columns.items()
        }
        done = 0
        for batch in records.order("index").to_arrow_reader(_RECORDS):
            for name, dataset in datasets.items():
                dataset.resize(done + len(batch), axis=0)
                dataset[done:] = batch[name].to_numpy(zero_copy_only=False)
            done += len(batch)
        self._file.attrs.update(metadata_for(provenance))
        log.info("%s records, %s sequences", f"{done:,}", f"{self.sequences:,}")


@contextmanager
def _writing(target: Path, model: PlannedModel, output: Output) -> Iterator[_ResidueFile]:
    """A new residue file of an output. Raises ConfigError if that is one vector per protein."""
    kind = output.kind
    if not isinstance(kind, Ragged):
        raise ConfigError(
            f"models.{model.name}.representations: {kind.name} is one vector per protein, which a table has"
        )
    with hdf5.writing(target) as file:
        yield _ResidueFile(file, kind, model.architecture, output.dtype(model.spec.vectors))


def _row_shape(kind: Ragged, architecture: Architecture) -> tuple[int, ...]:
    """What each residue has, if that is the same in proteins of any length; else () for numbers laid end to end."""
    shapes = {kind.residue_shape(residues, architecture) for residues in (1, 2)}
    return shapes.pop() if len(shapes) == 1 else ()
