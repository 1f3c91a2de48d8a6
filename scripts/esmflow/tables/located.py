"""The join of a sample's catalog with the store: which row of which store file each record has."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from esmflow import database
from esmflow.descriptor import Descriptor
from esmflow.errors import IncompleteError
from esmflow.spec import WHOLE, ModelSpec, Output
from esmflow.store.store import Space, Store, StoreFile, damaged, open_file, reading


def locate(
    connection: duckdb.DuckDBPyConnection,
    catalog: Path,
    spec: ModelSpec,
    descriptor: Descriptor,
    output: Output,
    store: Store,
) -> list[StoreFile]:
    """Make table `located` (index, id, length, key, valid, reason, place), a row per record; return the store's files.

    `place` is the number of the file and the row in it, as file << 32 | row; null if the store has not the sequence.
    """
    held: list[StoreFile] = []
    connection.execute("CREATE OR REPLACE TABLE place (key BLOB, treatment VARCHAR, place BIGINT, reason VARCHAR)")
    for treatment in spec.treatments:
        space = Space(descriptor.sha256, treatment, spec.precision)
        found = [file for file in store.files(space) if output in file.outputs]
        if found:
            try:
                connection.execute(
                    """
                    INSERT INTO place
                    SELECT key, $1, coalesce(min(place) FILTER (reason IS NULL), min(place)),
                           CASE WHEN count(*) = count(reason) THEN arg_min(reason, place) END
                    FROM (
                        SELECT key, reason,
                               (list_position($2, filename) - 1 + $3)::BIGINT << 32 | file_row_number AS place
                        FROM read_parquet($2, filename = true, file_row_number = true)
                        WHERE key IN (SELECT key FROM read_parquet($4))
                    ) GROUP BY key
                    """,
                    [treatment, [str(file.path) for file in found], len(held), str(catalog)],
                )
            except database.UNREADABLE as error:
                raise damaged(found[0].path.parent, error) from error
        held += found
    connection.execute(
        """
        CREATE OR REPLACE TABLE located AS
        SELECT index, id, length, c.key AS key, status = 'valid' AS valid, place,
               CASE WHEN status <> 'valid' THEN c.reason
                    WHEN c.treatment IS NULL THEN 'longer than ' || $2 || ' residues'
                    ELSE p.reason END AS reason
        FROM (SELECT *, CASE WHEN length <= $2 THEN $3 ELSE $4 END AS treatment FROM read_parquet($1)) c
        LEFT JOIN place p ON c.key = p.key AND c.treatment = p.treatment
        """,
        [str(catalog), spec.max_length, WHOLE, spec.long_treatment],
    )
    return held


def require_complete(connection: duckdb.DuckDBPyConnection, catalog: Path, output: Output, spec: ModelSpec) -> None:
    """Raise IncompleteError unless records = embedded + skipped."""
    row = connection.execute(
        "SELECT count(*), arg_min(id, index) FROM located WHERE place IS NULL AND reason IS NULL"
    ).fetchone()
    if row and row[0]:
        raise IncompleteError(
            f"{catalog}: {row[0]:,} records have no {output} of {spec.name} in the store (the first is {row[1]}); "
            "run again with --forcerun plan"
        )


def gather(
    connection: duckdb.DuckDBPyConnection, held: Sequence[StoreFile], output: Output, rows: int
) -> Iterator[tuple[pa.Array, np.ndarray, np.ndarray]]:
    """Yield what table `wanted` (place, target) asks for, in the order of place, so many rows of a file at a time.

    Yields (values of an output, int64 rows in them, int64 targets). Raises IncompleteError if a file is damaged.
    """
    used = connection.execute("SELECT DISTINCT place >> 32 AS file FROM wanted ORDER BY file").fetchnumpy()["file"]
    for number in used.tolist():
        found = connection.execute(
            "SELECT place - $1 AS row, target FROM wanted WHERE place BETWEEN $1 AND $1 + 4294967295 ORDER BY place",
            [number << 32],
        ).fetchnumpy()
        for begin, column in _stream(held[number], output, found["row"], rows):
            first, last = np.searchsorted(found["row"], [begin, begin + len(column)])
            yield column, found["row"][first:last] - begin, found["target"][first:last]


def _stream(file: StoreFile, output: Output, wanted: np.ndarray, rows: int) -> Iterator[tuple[int, pa.Array]]:
    """Yield (number of the first row, column of an output), so many rows at a time.

    Row groups that have none of the rows `wanted`, which ascend, are passed over. Raises IncompleteError if damaged.
    """
    end = 0
    with reading(file.path), open_file(file.path) as source:
        for group in range(source.num_row_groups):
            begin, end = end, end + source.metadata.row_group(group).num_rows
            first, last = np.searchsorted(wanted, [begin, end])
            if first == last:
                continue
            for batch in source.iter_batches(rows, row_groups=[group], columns=[str(output)]):
                yield begin, batch.column(0)
                begin += len(batch)
            if begin != end:
                raise pa.ArrowInvalid(f"{end - begin} rows are missing")


def provenance(spec: ModelSpec, descriptor: Descriptor, output: Output, held: Sequence[StoreFile]) -> dict[str, str]:
    """The metadata of a table: what made its numbers."""

    def used(name: str) -> str:
        return ",".join(sorted({file.metadata[name] for file in held}))

    return {
        "model": spec.name,
        "weights_sha256": descriptor.sha256,
        "layer": str(output.layer),
        "representation": output.representation,
        "long_sequences": spec.long_sequences,
        "max_length": str(spec.max_length),
        "window_overlap": str(spec.window_overlap),
        "precision": used("precision"),
        "attention": used("attention"),
    }
