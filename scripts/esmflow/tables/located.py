"""The join of a sample's catalog with the store: which row of which store file each record has."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from esmflow import database
from esmflow.errors import DataError, IncompleteError
from esmflow.planned_model import PlannedModel
from esmflow.refusal import refusal
from esmflow.representation import Output
from esmflow.sealed import MalformedError, open_file
from esmflow.store.quarantine import failed, reading
from esmflow.store.store import Store, StoreFile
from esmflow.treatment import WHOLE

#: Rows of a store file that are read together: of vectors, and of what grows with the protein.
_VECTORS, _RAGGED = 8192, 16


class LocatedRecords:
    """The records of a catalog, and where in the store each has its value of one output of a model.

    A place is the number of a store file and the row in it, as file << 32 | row.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        catalog: Path,
        model: PlannedModel,
        output: Output,
        store: Store,
    ) -> None:
        """Join catalog and store, in a table of the connection.

        Raises IncompleteError unless records = embedded + skipped, DataError if the sample was refused or its catalog
        is damaged.
        """
        if line := refusal(catalog):
            raise DataError(line)
        self._connection, self._model, self._output = connection, model, output
        self._files: list[StoreFile] = []
        database.make_room(connection, [catalog])
        self._find_places(catalog, store)
        records = connection.sql(
            """
            SELECT index, id, length, status = 'valid' AS valid, place,
                   CASE WHEN status <> 'valid' THEN c.reason
                        WHEN c.treatment IS NULL THEN 'longer than ' || $2 || ' residues'
                        ELSE p.reason END AS reason
            FROM (SELECT *, CASE WHEN length <= $2 THEN $3 ELSE $4 END AS treatment
                  FROM read_parquet($1, hive_partitioning = false)) c
            LEFT JOIN place p ON c.key = p.key AND c.treatment = p.treatment
            """,
            params=[
                database.literal(catalog),
                model.spec.max_length,
                str(WHOLE),
                model.spec.long_treatment and str(model.spec.long_treatment),
            ],
        )
        self._records = database.keep(connection, records)
        connection.execute("DROP TABLE place")
        self._require_complete(catalog)

    @property
    def records(self) -> int:
        """How many records the catalog has."""
        return len(self._records)

    @property
    def embedded(self) -> duckdb.DuckDBPyRelation:
        """Those that have a value: index, id, length, place."""
        embedded = self._records.filter("place IS NOT NULL AND reason IS NULL")
        return embedded.select("index", "id", "length", "place")

    @property
    def skipped(self) -> duckdb.DuckDBPyRelation:
        """The valid ones that have no value: index, reason."""
        return self._records.filter("valid AND reason IS NOT NULL").select("index", "reason")

    @property
    def provenance(self) -> dict[str, str]:
        """The metadata of a table: what made the numbers of its records."""
        rows = self.embedded.aggregate("place >> 32 AS file, count(*) AS rows").order("file").fetchnumpy()
        files = [self._files[number] for number in rows["file"].tolist()]
        used = {
            name: ",".join(sorted({file.metadata[name] for file in files if name in file.metadata}))
            for name in ("precision", "attention", "kernels")
        }
        counts: Counter[str] = Counter()
        for file, count in zip(files, rows["rows"].tolist(), strict=True):
            counts[file.metadata.get("precision", "unknown")] += count
        used["records_by_precision"] = ",".join(f"{precision}={counts[precision]}" for precision in sorted(counts))
        return self._model.provenance(self._output) | used

    def gather(self, targets: duckdb.DuckDBPyRelation) -> Iterator[tuple[pa.Array, np.ndarray, np.ndarray]]:
        """Yield the values of what is kept in `targets` (place, target), some rows of a store file at a time.

        Yields (values, int64 rows in them, int64 targets), in the order of place. Raises IncompleteError if a file is
        damaged.
        """
        numbers = targets.project("place >> 32 AS file").distinct().order("file").fetchnumpy()["file"]
        for number in numbers.tolist():
            # DuckDB finds `targets` among the variables here: a store of many files asks often, and this is quickest.
            columns = self._connection.execute(
                "SELECT place - $1 AS row, target FROM targets WHERE place BETWEEN $1 AND $1 + (1::BIGINT << 32) - 1 "
                "ORDER BY place",
                [number << 32],
            ).fetchnumpy()
            rows, numbered = columns["row"], columns["target"]
            for first_row, values in self._stream(self._files[number], rows):
                first, last = np.searchsorted(rows, [first_row, first_row + len(values)])
                yield values, rows[first:last] - first_row, numbered[first:last]

    def drop(self) -> None:
        """Free what the connection keeps of the records, which cannot be asked for anything afterwards."""
        database.forget(self._connection, self._records)

    def _find_places(self, catalog: Path, store: Store) -> None:
        """Make table `place` of the catalog's sequences in the store, which is there while the records are joined."""
        self._connection.execute("CREATE TABLE place (key BLOB, treatment VARCHAR, place BIGINT, reason VARCHAR)")
        for treatment in self._model.spec.treatments:
            spaces = self._model.spaces_of(treatment)
            files = [file for space in spaces for file in store.files(space) if self._output in file.outputs]
            if files:
                try:
                    self._connection.execute(
                        """
                        INSERT INTO place
                        SELECT key, $1, coalesce(min(place) FILTER (reason IS NULL), min(place)),
                               CASE WHEN count(*) = count(reason) THEN arg_min(reason, place) END
                        FROM (
                            SELECT key, reason,
                                   (list_position($2, filename) - 1 + $3)::BIGINT << 32 | file_row_number AS place
                            FROM read_parquet($4, filename = true, file_row_number = true, hive_partitioning = false)
                            WHERE key IN (SELECT key FROM read_parquet($5, hive_partitioning = false))
                        ) GROUP BY key
                        """,
                        [
                            str(treatment),
                            [str(file.path.absolute()) for file in files],
                            len(self._files),
                            [database.literal(file.path) for file in files],
                            database.literal(catalog),
                        ],
                    )
                except database.UNREADABLE as error:
                    raise failed([file.path for file in files], error) from error
            self._files += files

    def _require_complete(self, catalog: Path) -> None:
        missing = self._records.filter("place IS NULL AND reason IS NULL")
        [(count, first)] = missing.aggregate("count(*), arg_min(id, index)").fetchall()
        if count:
            raise IncompleteError(
                f"{catalog}: {count:,} records have no {self._output} of {self._model.name} in the store (the first is "
                f"{first}); run again with --forcerun plan"
            )

    def _stream(self, file: StoreFile, rows: np.ndarray) -> Iterator[tuple[int, pa.Array]]:
        """Yield (number of the first row, values), some rows at a time.

        Row groups that have none of the `rows` asked for, which ascend, are passed over. Raises IncompleteError if the
        file is damaged.
        """
        together = _RAGGED if self._output.ragged else _VECTORS
        end = 0
        with reading(file.path), open_file(file.path) as source:
            for group in range(source.num_row_groups):
                begin, end = end, end + source.metadata.row_group(group).num_rows
                first, last = np.searchsorted(rows, [begin, end])
                if first == last:
                    continue
                for batch in source.iter_batches(together, row_groups=[group], columns=[str(self._output)]):
                    yield begin, batch.column(0)
                    begin += len(batch)
                if begin != end:
                    raise MalformedError(f"{end - begin} rows are missing")
