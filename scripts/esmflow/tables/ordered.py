"""The records of a sample in file order, each with its values of some outputs, in constant memory."""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import duckdb
import numpy as np
import pyarrow as pa

from esmflow import database
from esmflow.descriptor import LETTERS, Descriptor
from esmflow.spec import WHOLE, ModelSpec, Output
from esmflow.store.store import Store, StoreFile, metadata_for
from esmflow.tables import located
from esmflow.treatment import kept, value_bytes

_BATCH_BYTES = 16 << 20
_RECORDS = 10_000
_STORE_ROWS, _RAGGED_STORE_ROWS = 8192, 16

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Records:
    """The records of a sample that have all of some outputs, in file order; to be gone through once."""

    count: int
    embed_dim: int
    metadata: Mapping[Output, Mapping[str, str]]
    """The outputs, and what made the numbers of each."""
    _connection: duckdb.DuckDBPyConnection
    _scratch: Mapping[Output, IO[bytes]]

    def batches(self, *columns: str) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
        """Yield columns of some records and their vectors of the one output, float32 [records, embed_dim].

        A column is an SQL expression of the catalog's columns and, where the sequences were given, `md5`, the
        hexadecimal MD5 of the residues.
        """
        [scratch] = self._scratch.values()
        for batch in self._read(columns, max(_BATCH_BYTES // (4 * self.embed_dim), 1)):
            vectors = np.fromfile(scratch, np.float32, len(batch) * self.embed_dim)
            yield batch, vectors.reshape(-1, self.embed_dim)

    def rows(self, *columns: str) -> Iterator[tuple[dict[str, Any], dict[Output, np.ndarray]]]:
        """Yield columns of a record, as in `batches`, and its values of each output.

        float32 [embed_dim] for a vector, [kept residues, embed_dim] for `per_tok`, [kept residues, 33] for `logits`
        and [kept residues, kept residues] for `contacts`.
        """
        for batch in self._read((*columns, "kept"), _RECORDS):
            for row in batch.to_pylist():
                yield row, {output: self._value(output, row["kept"]) for output in self._scratch}

    def _read(self, columns: Sequence[str], rows: int) -> pa.RecordBatchReader:
        for scratch in self._scratch.values():
            scratch.seek(0)
        return self._connection.sql(f"SELECT {', '.join(columns)} FROM record ORDER BY index").to_arrow_reader(rows)

    def _value(self, output: Output, residues: int) -> np.ndarray:
        """The next value in the scratch file of an output."""
        shapes = {
            "per_tok": (residues, self.embed_dim),
            "logits": (residues, LETTERS),
            "contacts": (residues, residues),
        }
        shape = shapes.get(output.representation, (self.embed_dim,))
        return np.fromfile(self._scratch[output], np.float32, int(np.prod(shape))).reshape(shape)


@contextmanager
def embedded(
    catalog: Path,
    spec: ModelSpec,
    descriptor: Descriptor,
    outputs: Sequence[Output],
    store: Store,
    beside: Path,
    sequences: Path | None = None,
) -> Iterator[Records]:
    """Bring outputs of a sample's records from the store into file order, in scratch files beside a path.

    sequences: the sample's file of residues, where `md5` is wanted. Raises IncompleteError if a valid record is
    neither in the store nor skipped with a reason.
    """
    beside.parent.mkdir(parents=True, exist_ok=True)
    with database.connect(beside) as connection, ExitStack() as stack:
        held = {}
        for number, output in enumerate(outputs):
            held[output] = located.locate(connection, catalog, spec, descriptor, output, store)
            located.require_complete(connection, catalog, output, spec)
            connection.execute(
                f"CREATE TABLE found{number} AS SELECT index, place AS place{number} FROM located "
                "WHERE place IS NOT NULL AND reason IS NULL"
            )
        connection.register("size", _sizes(connection, spec.long_treatment or WHOLE, descriptor, outputs))
        query, parameters = "CREATE TABLE record AS SELECT * FROM read_parquet($1)", [str(catalog)]
        if sequences:
            md5 = "SELECT DISTINCT key, md5(residues) AS md5 FROM read_parquet($2)"
            query, parameters = f"{query} JOIN ({md5}) USING (key)", [*parameters, str(sequences)]
        found = [f"JOIN found{number} USING (index)" for number in range(len(outputs))]
        connection.execute(f"{query} JOIN size USING (length) {' '.join(found)}", parameters)
        scratch = {output: stack.enter_context(tempfile.TemporaryFile(dir=beside.parent)) for output in outputs}
        for number, output in enumerate(outputs):
            _scatter(connection, number, output, held[output], scratch[output])
        [(count,)] = connection.execute("SELECT count(*) FROM record").fetchall()
        log.info("%s records", f"{count:,}")
        metadata = {
            output: metadata_for(located.provenance(spec, descriptor, output, files)) for output, files in held.items()
        }
        yield Records(count, descriptor.architecture.embed_dim, metadata, connection, scratch)


def _sizes(
    connection: duckdb.DuckDBPyConnection, treatment: str, descriptor: Descriptor, outputs: Sequence[Output]
) -> pa.Table:
    """How many residues are kept of each length, and the bytes of the outputs: length, kept, bytes0, bytes1 ..."""
    lengths = connection.execute("SELECT DISTINCT length FROM located").fetchnumpy()["length"]
    residues = kept(lengths, treatment)
    sizes = {
        f"bytes{number}": value_bytes(descriptor.architecture, residues, output)
        for number, output in enumerate(outputs)
    }
    return pa.table({"length": lengths, "kept": residues} | sizes)


def _scatter(
    connection: duckdb.DuckDBPyConnection, number: int, output: Output, held: Sequence[StoreFile], scratch: IO[bytes]
) -> None:
    """Copy each record's value of an output from the store to its place in a scratch file."""
    connection.execute(
        f"CREATE OR REPLACE TABLE wanted AS SELECT place{number} AS place, "
        f"(sum(bytes{number}) OVER (ORDER BY index) - bytes{number})::BIGINT AS target FROM record ORDER BY place"
    )
    for column, rows, targets in located.gather(
        connection, held, output, _RAGGED_STORE_ROWS if output.ragged else _STORE_ROWS
    ):
        for row, target in zip(rows.tolist(), targets.tolist(), strict=True):
            scratch.seek(target)
            scratch.write(column[row].values.to_numpy().data)
