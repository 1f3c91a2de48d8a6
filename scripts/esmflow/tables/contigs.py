"""Tables of contigs: the vectors of each contig's fragments, pooled, in constant memory."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from esmflow import files
from esmflow.errors import DataError
from esmflow.origin import ANOTHER_CONTIG
from esmflow.sealed import whole
from esmflow.store.store import VECTOR_FILE, vector_type
from esmflow.tables.ordered import OrderedRecords

_ROWS = 50_000
#: Of pooled vectors that lie in memory together, and that are a row group of a table.
_GROUP_BYTES = 16 << 20

log = logging.getLogger(__name__)


def write_contigs(records: OrderedRecords, catalog: Path, poolings: Sequence[str], table: Path) -> None:
    """Write `contig`, `fragments` and a column per pooling for each contig of a sample, in the sample's order.

    records: of one output. `fragments` is how many embedded records the contig has; a pooling, of `origin.POOLINGS`,
    is a vector, [embed_dim] in the dtype of the fragments', or null where there are none. Sums are float64.
    """
    [(output, metadata)] = records.metadata.items()
    dtype = records.dtype(output)
    vector = vector_type(dtype, records.embed_dim)
    schema = pa.schema(
        [
            pa.field("contig", pa.string(), nullable=False),
            pa.field("fragments", pa.int64(), nullable=False),
            *(pa.field(pooling, vector) for pooling in poolings),
        ],
        metadata,
    )
    together = max(_GROUP_BYTES // (dtype.itemsize * records.embed_dim * len(poolings)), 1)
    vectors = _Vectors(records)
    count = 0
    rows: list[tuple[str, int, dict[str, np.ndarray]]] = []
    with files.atomic(table) as temporary, pq.ParquetWriter(temporary, schema, **VECTOR_FILE) as writer:
        for contig, first, end in _contigs(catalog):
            for _ in vectors.before(first):
                pass
            rows.append((contig, *_pool(vectors.before(end), records.embed_dim, dtype)))
            count += 1
            if len(rows) == together:
                writer.write_batch(_batch(rows, schema))
                rows.clear()
        writer.write_batch(_batch(rows, schema))
    log.info("%s contigs", f"{count:,}")


def _contigs(catalog: Path) -> Iterator[tuple[str, int, int]]:
    """The ID of each contig, the index of its first record and that behind its last; not those of proteins."""
    current: str | None = None
    first = index = -1
    with pq.ParquetFile(whole(catalog)) as file:
        if "contig" not in file.schema_arrow.names:
            raise DataError(f"{catalog}: its sample has no contigs; give that of a sample that has some")
        for batch in file.iter_batches(_ROWS, columns=["index", "contig", "flags"]):
            for index, contig, flags in zip(*(batch[name].to_pylist() for name in batch.schema.names), strict=True):
                if contig != current or ANOTHER_CONTIG in flags.split(","):
                    if current is not None:
                        yield current, first, index
                    current, first = contig, index
    if current is not None:
        yield current, first, index + 1


class _Vectors:
    """The vectors of records, which are taken in their order."""

    def __init__(self, records: OrderedRecords) -> None:
        self._batches = records.batches("index")
        self._index = np.empty(0, np.int64)
        self._vectors = np.empty((0, records.embed_dim))

    def before(self, end: int) -> Iterator[np.ndarray]:
        """The next vectors, of the records that come before an index, some at a time: [records, embed_dim]."""
        while True:
            count = int(np.searchsorted(self._index, end))
            if count:
                yield self._vectors[:count]
            self._index, self._vectors = self._index[count:], self._vectors[count:]
            batch = None if len(self._index) else next(self._batches, None)
            if batch is None:
                return
            self._index, self._vectors = batch[0]["index"].to_numpy(), batch[1]


def _pool(parts: Iterator[np.ndarray], embed_dim: int, dtype: np.dtype) -> tuple[int, dict[str, np.ndarray]]:
    """How many vectors there are, and if any their poolings by name: [embed_dim] in the dtype."""
    count = 0
    total = np.zeros(embed_dim)
    largest = np.full(embed_dim, -np.inf, dtype)
    for part in parts:
        count += len(part)
        total += part.sum(axis=0, dtype=np.float64)
        np.maximum(largest, part.max(axis=0), out=largest)
    return count, {"mean": (total / count).astype(dtype), "max": largest} if count else {}


def _batch(rows: Sequence[tuple[str, int, dict[str, np.ndarray]]], schema: pa.Schema) -> pa.RecordBatch:
    contigs, counts, pooled = zip(*rows, strict=True) if rows else ((), (), ())
    columns = [pa.array(contigs, pa.string()), pa.array(counts, pa.int64())]
    poolings = list(schema)[len(columns) :]
    columns += [pa.array([vectors.get(pooling.name) for vectors in pooled], pooling.type) for pooling in poolings]
    return pa.record_batch(columns, schema)
