"""The records of a sample in file order, each with its values of a model's outputs, in constant memory."""

import logging
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import duckdb
import numpy as np
import pyarrow as pa

from esmflow import database
from esmflow.planned_model import PlannedModel
from esmflow.representation import Output
from esmflow.sealed import whole
from esmflow.store.store import Store, metadata_for
from esmflow.tables.located import LocatedRecords
from esmflow.treatment import WHOLE

_BATCH_BYTES = 16 << 20
_RECORDS = 10_000

log = logging.getLogger(__name__)


class OrderedRecords:
    """The records of a sample that have all outputs of a model, in file order."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        catalog: Path,
        model: PlannedModel,
        store: Store,
        sequences: Path | None,
        scratch: Mapping[Output, IO[bytes]],
    ) -> None:
        """Bring the values from the store into file order, in a scratch file per output."""
        self.embed_dim = model.architecture.embed_dim
        self._model, self._scratch = model, scratch
        located = {output: LocatedRecords(connection, catalog, model, output, store) for output in scratch}
        records = connection.read_parquet(database.literal(catalog), hive_partitioning=False).set_alias("records")
        sizes = connection.from_arrow(_sizes(records, model, list(scratch))).set_alias("sizes")
        if sequences:
            residues = connection.read_parquet(database.literal(whole(sequences)), hive_partitioning=False)
            records = records.join(residues.project("key, md5(residues) AS md5").distinct().set_alias("hashes"), "key")
        for number, output in enumerate(scratch):
            places = located[output].embedded.project(f"index, place AS place{number}")
            records = records.join(places.set_alias(f"places{number}"), "index")
        self._records = database.keep(connection, records.join(sizes, "length"))
        for number, output in enumerate(scratch):
            self._scatter(connection, number, located[output], scratch[output])
        self.count = len(self._records)
        self.metadata: dict[Output, dict[str, str]] = {
            output: metadata_for(part.provenance) for output, part in located.items()
        }
        """The outputs, and what made the numbers of each."""

    def dtype(self, output: Output) -> np.dtype:
        """Of the values of an output."""
        return output.dtype(self._model.spec.vectors)

    def batches(self, *columns: str) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
        """Yield columns of some records and their vectors of the one output, [records, embed_dim] in its dtype.

        A column is an SQL expression of the catalog's columns and, where the sequences were given, `md5`, the
        hexadecimal MD5 of the residues.
        """
        [(output, scratch)] = self._scratch.items()
        dtype = self.dtype(output)
        for batch in self._read(columns, max(_BATCH_BYTES // (dtype.itemsize * self.embed_dim), 1)):
            vectors = np.fromfile(scratch, dtype, len(batch) * self.embed_dim)
            yield batch, vectors.reshape(-1, self.embed_dim)

    def rows(self, *columns: str) -> Iterator[tuple[tuple[Any, ...], dict[Output, np.ndarray]]]:
        """Yield columns of a record, as in `batches`, and its values of each output, in its dtype and shape."""
        for batch in self._read((*columns, "kept"), _RECORDS):
            fields = (column.to_pylist() for column in batch.columns[: len(columns)])
            for *row, kept in zip(*fields, batch["kept"].to_pylist(), strict=True):
                yield tuple(row), {output: self._value(output, kept) for output in self._scratch}

    def _read(self, columns: Sequence[str], rows: int) -> pa.RecordBatchReader:
        for scratch in self._scratch.values():
            scratch.seek(0)
        return self._records.project(", ".join((*columns, "index"))).order("index").to_arrow_reader(rows)

    def _value(self, output: Output, residues: int) -> np.ndarray:
        """The next value in the scratch file of an output."""
        shape = output.kind.shape(residues, self._model.architecture)
        return np.fromfile(self._scratch[output], self.dtype(output), math.prod(shape)).reshape(shape)

    def _scatter(
        self, connection: duckdb.DuckDBPyConnection, number: int, located: LocatedRecords, scratch: IO[bytes]
    ) -> None:
        """Copy each record's value of an output from the store to its place in a scratch file."""
        offset = f"(sum(bytes{number}) OVER (ORDER BY index) - bytes{number})::BIGINT"
        places = self._records.project(f"place{number} AS place, {offset} AS target").order("place")
        for column, rows, targets in located.gather(database.keep(connection, places)):
            for row, target in zip(rows.tolist(), targets.tolist(), strict=True):
                scratch.seek(target)
                scratch.write(column[row].values.to_numpy().data)


@contextmanager
def embedded(
    catalog: Path, model: PlannedModel, store: Store, beside: Path, sequences: Path | None = None
) -> Iterator[OrderedRecords]:
    """The records that have all outputs of a model, whose values lie in scratch files beside a path meanwhile.

    sequences: the sample's file of residues, where `md5` is wanted. Raises IncompleteError if a valid record is
    neither in the store nor skipped with a reason.
    """
    beside.parent.mkdir(parents=True, exist_ok=True)
    with database.connect(beside) as connection, ExitStack() as stack:
        scratch = {output: stack.enter_context(tempfile.TemporaryFile(dir=beside.parent)) for output in model.outputs}
        records = OrderedRecords(connection, catalog, model, store, sequences, scratch)
        log.info("%s records", f"{records.count:,}")
        yield records


def _sizes(records: duckdb.DuckDBPyRelation, model: PlannedModel, outputs: Sequence[Output]) -> pa.Table:
    """How many residues are kept of each length, and the bytes of the outputs: length, kept, bytes0, bytes1 ..."""
    lengths = records.select("length").distinct().fetchnumpy()["length"]
    kept = (model.spec.long_treatment or WHOLE).kept(lengths)
    bytes_ = [model.stored_bytes(output, kept) for output in outputs]
    return pa.table({"length": lengths, "kept": kept} | {f"bytes{number}": part for number, part in enumerate(bytes_)})
