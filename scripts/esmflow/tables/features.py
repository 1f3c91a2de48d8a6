"""Feature tables: the vectors of a sample's records, in file order."""

import logging
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import IO, TypeVar

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from esmflow import database, files
from esmflow.planned_model import PlannedModel
from esmflow.representation import Output
from esmflow.store.store import VECTOR_FILE, Store, metadata_for, vector_array, vector_type
from esmflow.tables.located import LocatedRecords

#: Of vectors that lie in memory together, and that are a row group of a table.
_SLICE_BYTES = 16 << 20

_Item = TypeVar("_Item")

log = logging.getLogger(__name__)


def write_table(
    catalog: Path, model: PlannedModel, output: Output, store: Store, table: Path, part_bytes: int | None = None
) -> None:
    """Write a sample's feature table: `id`, `length`, `embedding` of each embedded record, in file order.

    With `part_bytes` the table is a directory of files `part-00000.parquet` and so on, each with at most so many bytes
    of vectors (one at least). A table of the other form that an earlier run left is removed.
    The vectors never lie in memory together: they are copied, file by file of the store, to their records' places
    in a scratch file beside `table`, and from there into the table.
    Raises IncompleteError if a valid record is neither in the store nor skipped with a reason.
    """
    table.parent.mkdir(parents=True, exist_ok=True)
    with database.connect(table) as connection:
        located = LocatedRecords(connection, catalog, model, output, store)
        numbered = located.embedded.project("id, length, place, row_number() OVER (ORDER BY index) - 1 AS target")
        records = database.keep(connection, numbered.order("place"))
        embedded = len(records)
        dtype, embed_dim = output.dtype(model.spec.vectors), model.architecture.embed_dim
        vector_bytes = dtype.itemsize * embed_dim
        schema = pa.schema(
            [
                pa.field("id", pa.string(), nullable=False),
                pa.field("length", pa.int32(), nullable=False),
                pa.field("embedding", vector_type(dtype, embed_dim), nullable=False),
            ],
            metadata_for(located.provenance),
        )
        rows = max(min(_SLICE_BYTES, part_bytes or _SLICE_BYTES) // vector_bytes, 1)
        slices = [range(first, min(first + rows, embedded)) for first in range(0, embedded, rows)]
        count = max(part_bytes // (vector_bytes * rows), 1) if part_bytes else max(len(slices), 1)
        writing = files.atomic_directory(table) if part_bytes else files.atomic(table)
        with writing as temporary, tempfile.TemporaryFile(dir=table.parent) as scratch:
            _scatter(located.gather(records), rows, scratch)
            scratch.seek(0)
            for number, first in enumerate(range(0, max(len(slices), 1), count)):
                part = temporary / f"part-{number:05d}.parquet" if part_bytes else temporary
                _write_slices(records, slices[first : first + count], scratch, schema, part)
        total = located.records
    _remove_other_form(table)
    log.info("%s records: %s embedded, %s skipped", f"{total:,}", f"{embedded:,}", f"{total - embedded:,}")


def _scatter(gathered: Iterator[tuple[pa.Array, np.ndarray, np.ndarray]], slice_rows: int, scratch: IO[bytes]) -> None:
    """Copy the embedded records' vectors from the store to the scratch file, [rows, embed_dim] in their own dtype.

    A slice of so many rows has the vectors of its records in the order of the store, so that few are written alone.
    """
    filled: defaultdict[int, int] = defaultdict(int)
    for column, rows, targets in _ahead(gathered):
        vectors = column.flatten().to_numpy().reshape(-1, column.type.list_size)
        slices = targets // slice_rows
        order = np.argsort(slices, kind="stable")
        numbers, begins = np.unique(slices[order], return_index=True)
        for number, rows_of_slice in zip(numbers.tolist(), np.split(rows[order], begins[1:]), strict=True):
            scratch.seek((number * slice_rows + filled[number]) * vectors[0].nbytes)
            scratch.write(vectors[rows_of_slice].data)
            filled[number] += len(rows_of_slice)


def _write_slices(
    records: duckdb.DuckDBPyRelation, slices: Sequence[range], scratch: IO[bytes], schema: pa.Schema, target: Path
) -> None:
    """Write slices, which come next in the scratch file, as one Parquet file, in the order of their records."""
    with pq.ParquetWriter(target, schema, **VECTOR_FILE) as writer:
        for table in _ahead(_read_slices(records, slices, scratch, schema)):
            writer.write_table(table)
    files.sync(target)


def _read_slices(
    records: duckdb.DuckDBPyRelation, slices: Sequence[range], scratch: IO[bytes], schema: pa.Schema
) -> Iterator[pa.Table]:
    """Yield the rows of each slice. Their vectors lie in memory that is used again for the next slice but one."""
    vector = schema.field("embedding").type
    shape = 3, max(map(len, slices), default=0), vector.list_size
    stored, *memory = np.empty(shape, vector.value_type.to_pandas_dtype())
    for numbers, vectors in zip(slices, cycle(memory), strict=False):
        rows = records.filter(f"target >= {numbers.start} AND target < {numbers.stop}").order("target").to_arrow_table()
        scratch.readinto(stored[: len(numbers)].data)  # type: ignore[attr-defined]
        vectors[np.argsort(rows["place"].to_numpy(), kind="stable")] = stored[: len(numbers)]
        yield pa.Table.from_arrays([rows["id"], rows["length"], vector_array(vectors[: len(numbers)])], schema=schema)


def _ahead(items: Iterator[_Item]) -> Iterator[_Item]:
    """The items, of which the next is made by a thread while one is in use."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def _remove_other_form(table: Path) -> None:
    """Remove the file where there is a directory of parts now, and the other way round: it would go out of date."""
    if table.is_dir():
        table.with_suffix(".parquet").unlink(missing_ok=True)
    else:
        shutil.rmtree(table.with_suffix(".parts"), ignore_errors=True)
