"""Feature tables and status files: the join of a sample's catalog with the store."""

import csv
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from esmflow import database, files, join
from esmflow.descriptor import Descriptor
from esmflow.spec import ModelSpec, Output
from esmflow.store import VECTOR_FILE, Store, StoreFile, metadata_for, vector_array
from esmflow.treatment import flag

_ROW_GROUP_BYTES = 16 << 20
_BATCH = 50_000
_STORE_ROWS = 8192

log = logging.getLogger(__name__)


def write_table(
    catalog: Path, spec: ModelSpec, descriptor: Descriptor, output: Output, store: Store, table: Path
) -> None:
    """Write a sample's feature table: `id`, `length`, `embedding` of each embedded record, in file order.

    The vectors never lie in memory together: they are copied, file by file of the store, to their records' places
    in a scratch file beside `table`, and from there into the table.
    Raises IncompleteError if a valid record is neither in the store nor skipped with a reason.
    """
    table.parent.mkdir(parents=True, exist_ok=True)
    with database.connect(table) as connection:
        held = join.locate(connection, catalog, spec, descriptor, output, store)
        join.require_complete(connection, catalog, output, spec)
        embed_dim = descriptor.architecture.embed_dim
        schema = pa.schema(
            [
                pa.field("id", pa.string(), nullable=False),
                pa.field("length", pa.int32(), nullable=False),
                pa.field("embedding", vector_array(np.empty((0, embed_dim), np.float32)).type, nullable=False),
            ],
            metadata_for(join.provenance(spec, descriptor, output, held)),
        )
        with tempfile.TemporaryFile(dir=table.parent) as scratch, files.atomic(table) as temporary:
            _scatter(connection, held, output, embed_dim, scratch.fileno())
            rows = max(_ROW_GROUP_BYTES // (4 * embed_dim), 1)
            scratch.seek(0)
            reader = connection.sql(
                "SELECT id, length FROM located WHERE place IS NOT NULL AND reason IS NULL ORDER BY index"
            ).to_arrow_reader(rows)
            with pq.ParquetWriter(temporary, schema, **VECTOR_FILE) as writer:
                for batch in reader:
                    vectors = np.fromfile(scratch, np.float32, len(batch) * embed_dim).reshape(-1, embed_dim)
                    columns = [batch["id"], batch["length"], vector_array(vectors)]
                    writer.write_table(pa.Table.from_arrays(columns, schema=schema))
        records, embedded = connection.execute(
            "SELECT count(*), count(*) FILTER (reason IS NULL) FROM located"
        ).fetchall()[0]
    log.info("%s records: %s embedded, %s skipped", f"{records:,}", f"{embedded:,}", f"{records - embedded:,}")


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
                join.locate(connection, catalog, spec, descriptor, output, store)
                join.require_complete(connection, catalog, output, spec)
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


def _scatter(
    connection: duckdb.DuckDBPyConnection, held: Sequence[StoreFile], output: Output, embed_dim: int, scratch: int
) -> None:
    """Copy each embedded record's vector from the store to its place in the scratch file."""
    size = 4 * embed_dim
    connection.execute(
        "CREATE TABLE wanted AS SELECT place, row_number() OVER (ORDER BY index) - 1 AS target "
        "FROM located WHERE place IS NOT NULL AND reason IS NULL ORDER BY place"
    )
    for column, rows, targets in join.gather(connection, held, output, _STORE_ROWS):
        vectors = column.flatten().to_numpy().reshape(-1, embed_dim)
        for row, target in zip(rows, targets.tolist(), strict=True):
            os.pwrite(scratch, vectors[row].data, target * size)
