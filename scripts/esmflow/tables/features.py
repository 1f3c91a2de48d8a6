"""Feature tables and status files: the join of a sample's catalog with the store."""

import csv
import logging
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import IO, TypeVar

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from esmflow import database, files
from esmflow.descriptor import Descriptor
from esmflow.spec import ModelSpec, Output
from esmflow.store.store import VECTOR_FILE, Store, StoreFile, metadata_for, vector_array
from esmflow.tables import located
from esmflow.treatment import flag

_BATCH = 50_000
_STORE_ROWS = 8192
#: Of vectors that lie in memory together, and that are a row group of a table.
_SLICE_BYTES = 16 << 20

_Item = TypeVar("_Item")

log = logging.getLogger(__name__)


def write_table(
    catalog: Path,
    spec: ModelSpec,
    descriptor: Descriptor,
    output: Output,
    store: Store,
    table: Path,
    part_bytes: int | None = None,
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
        held = located.locate(connection, catalog, spec, descriptor, output, store)
        located.require_complete(connection, catalog, output, spec)
        connection.execute(
            "CREATE TABLE wanted AS SELECT id, length, place, row_number() OVER (ORDER BY index) - 1 AS target "
            "FROM located WHERE place IS NOT NULL AND reason IS NULL ORDER BY place"
        )
        [(records,)] = connection.execute("SELECT count(*) FROM located").fetchall()
        [(embedded,)] = connection.execute("SELECT count(*) FROM wanted").fetchall()
        embed_dim = descriptor.architecture.embed_dim
        schema = pa.schema(
            [
                pa.field("id", pa.string(), nullable=False),
                pa.field("length", pa.int32(), nullable=False),
                pa.field("embedding", vector_array(np.empty((0, embed_dim), np.float32)).type, nullable=False),
            ],
            metadata_for(located.provenance(spec, descriptor, output, held)),
        )
        rows = max(min(_SLICE_BYTES, part_bytes or _SLICE_BYTES) // (4 * embed_dim), 1)
        slices = [range(first, min(first + rows, embedded)) for first in range(0, embedded, rows)]
        count = max(part_bytes // (4 * embed_dim * rows), 1) if part_bytes else max(len(slices), 1)
        writing = files.atomic_directory(table) if part_bytes else files.atomic(table)
        with writing as temporary, tempfile.TemporaryFile(dir=table.parent) as scratch:
            _scatter(connection, held, output, embed_dim, rows, scratch)
            scratch.seek(0)
            for number, first in enumerate(range(0, max(len(slices), 1), count)):
                part = temporary / f"part-{number:05d}.parquet" if part_bytes else temporary
                _write_slices(connection, slices[first : first + count], scratch, schema, part)
    _remove_other_form(table)
    log.info("%s records: %s embedded, %s skipped", f"{records:,}", f"{embedded:,}", f"{records - embedded:,}")


def _scatter(
    connection: duckdb.DuckDBPyConnection,
    held: Sequence[StoreFile],
    output: Output,
    embed_dim: int,
    slice_rows: int,
    scratch: IO[bytes],
) -> None:
    """Copy the embedded records' vectors from the store to the scratch file, float32 [rows, embed_dim].

    A slice of so many rows has the vectors of its records in the order of the store, so that few are written alone.
    """
    filled: defaultdict[int, int] = defaultdict(int)
    for column, rows, targets in _ahead(located.gather(connection, held, output, _STORE_ROWS)):
        vectors = column.flatten().to_numpy().reshape(-1, embed_dim)
        slices = targets // slice_rows
        order = np.argsort(slices, kind="stable")
        numbers, begins = np.unique(slices[order], return_index=True)
        for number, own in zip(numbers.tolist(), np.split(rows[order], begins[1:]), strict=True):
            scratch.seek((number * slice_rows + filled[number]) * 4 * embed_dim)
            scratch.write(vectors[own].data)
            filled[number] += len(own)


def _write_slices(
    connection: duckdb.DuckDBPyConnection, slices: Sequence[range], scratch: IO[bytes], schema: pa.Schema, target: Path
) -> None:
    """Write slices, which come next in the scratch file, as one Parquet file, in the order of their records."""
    with pq.ParquetWriter(target, schema, **VECTOR_FILE) as writer:
        for table in _ahead(_read_slices(connection, slices, scratch, schema)):
            writer.write_table(table)
    files.sync(target)


def _read_slices(
    connection: duckdb.DuckDBPyConnection, slices: Sequence[range], scratch: IO[bytes], schema: pa.Schema
) -> Iterator[pa.Table]:
    """Yield the rows of each slice. Their vectors lie in memory that is used again for the next slice but one."""
    embed_dim = schema.field("embedding").type.list_size
    stored, *memory = np.empty((3, max(map(len, slices), default=0), embed_dim), np.float32)
    for own, vectors in zip(slices, cycle(memory), strict=False):
        records = connection.sql(
            "SELECT id, length, place FROM wanted WHERE target >= $1 AND target < $2 ORDER BY target",
            params=[own.start, own.stop],
        ).to_arrow_table()
        scratch.readinto(stored[: len(own)].data)  # type: ignore[attr-defined]
        vectors[np.argsort(records["place"].to_numpy(), kind="stable")] = stored[: len(own)]
        yield pa.Table.from_arrays([records["id"], records["length"], vector_array(vectors[: len(own)])], schema=schema)


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


def write_status(
    catalog: Path, specs: Sequence[ModelSpec], descriptors: Mapping[str, Descriptor], store: Store, status: Path
) -> None:
    """Write a sample's status file: id, length, status, reason and flags of each record, in file order.

    A record is `embedded` if every output of every model has it, else `skipped` with the first reason found. A reason
    or flag that does not hold for all models names its model. Raises IncompleteError as `write_table` does.
    """
    with database.connect(status) as connection:
        connection.execute("CREATE TABLE outcome (index BIGINT, model VARCHAR, reason VARCHAR)")
        for spec in specs:
            descriptor = descriptors[spec.name]
            for output in spec.outputs(descriptor.architecture.layers):
                located.locate(connection, catalog, spec, descriptor, output, store)
                located.require_complete(connection, catalog, output, spec)
                connection.execute(
                    "INSERT INTO outcome SELECT index, $1, reason FROM located WHERE valid AND reason IS NOT NULL",
                    [spec.name],
                )
        connection.execute(
            "CREATE TABLE refused AS SELECT index, CASE WHEN count(*) = $1 AND count(DISTINCT reason) = 1 "
            "THEN min(reason) ELSE min(model || ': ' || reason) END AS refusal FROM "
            "(SELECT index, model, min(reason) AS reason FROM outcome GROUP BY index, model) GROUP BY index",
            [len(specs)],
        )
        reader = connection.sql(
            "SELECT id, length, coalesce(reason, refusal) AS reason, flags "
            "FROM read_parquet($1) LEFT JOIN refused USING (index) ORDER BY index",
            params=[str(catalog)],
        ).to_arrow_reader(_BATCH)
        with files.atomic(status) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerow(["id", "length", "status", "reason", "flags"])
            for batch in reader:
                for row in batch.to_pylist():
                    flags = [flag for flag in [row["flags"], *_length_flags(specs, row["length"])] if flag]
                    outcome = "skipped" if row["reason"] else "embedded"
                    writer.writerow([row["id"], row["length"], outcome, row["reason"] or "", ",".join(flags)])


def _length_flags(specs: Sequence[ModelSpec], length: int) -> list[str]:
    """How the models treat a record for its length, with a model's name where they differ."""
    treatments = {spec.name: spec.treatment(length) for spec in specs}
    flags = {model: flag(length, treatment) for model, treatment in treatments.items() if treatment}
    if len(flags) == len(specs) and len(set(flags.values())) == 1:
        return [text for text in [next(iter(flags.values()))] if text]
    return [f"{model}:{text}" for model, text in flags.items() if text]
