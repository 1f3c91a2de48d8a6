"""Shards: what is missing, cut into pieces of equal cost."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from esmflow.descriptor import Descriptor
from esmflow.jobs import SHARD, Shard
from esmflow.plan.missing import Batch
from esmflow.spec import ModelSpec
from esmflow.store.store import Space
from esmflow.treatment import cost, kept, value_bytes

#: A shard's vectors are held in memory until it is committed.
_MAX_BYTES = 256 << 20
_BATCH = 20_000


def cut(
    connection: duckdb.DuckDBPyConnection,
    spec: ModelSpec,
    descriptor: Descriptor,
    batch: Batch,
    sequences: Sequence[Path],
    directory: Path,
    *,
    shard_cost: float,
) -> list[Shard]:
    """Cut a batch, in order of the samples, into shards of `shard_cost` FLOPs at most, and write them.

    What is where is added to table `cut` (place, shard).
    """
    shape = descriptor.architecture
    depth = max(output.layer for output in batch.outputs)
    select = "FROM todo WHERE treatment = $1 AND list_contains($2::BIT[], found)"
    parameters = [batch.treatment, batch.found]

    histogram = connection.execute(f"SELECT length, count(*) AS n {select} GROUP BY length", parameters).fetchnumpy()
    total = float((histogram["n"] * cost(shape, histogram["length"], batch.treatment, depth)).sum())
    count = int(histogram["n"].sum())
    residues = kept(histogram["length"], batch.treatment)
    size = sum(int(histogram["n"] @ value_bytes(shape, residues, output)) for output in batch.outputs)
    pieces = min(count, max(math.ceil(total / shard_cost), math.ceil(size / _MAX_BYTES)))

    inserting = connection.cursor()
    reader = connection.sql(f"SELECT place {select} ORDER BY place", params=parameters).to_arrow_reader(_BATCH)
    places = (rows["place"].to_numpy() for rows in reader)
    shards: list[Shard] = []
    writer: _ShardWriter | None = None
    done, piece = 0.0, -1
    for table, where in _pick(sequences, places):
        lengths = pa.compute.binary_length(table["residues"]).to_numpy()
        costs = cost(shape, lengths, batch.treatment, depth)
        middles = done + np.cumsum(costs) - costs / 2
        done += costs.sum()
        numbers = np.minimum((middles * (pieces / total)).astype(np.int64), pieces - 1)
        for number in np.unique(numbers):
            first, last = np.searchsorted(numbers, [number, number + 1])
            if number != piece:
                if writer:
                    shards.append(writer.finish(inserting))
                writer, piece = _ShardWriter(directory, spec, descriptor, batch), number
            assert writer is not None
            own = slice(first, last)
            residues = kept(lengths[own], batch.treatment)
            size = sum(int(value_bytes(shape, residues, output).sum()) for output in batch.outputs)
            writer.add(table.slice(first, last - first), where[own], int(residues.sum()), float(costs[own].sum()), size)
    if writer:
        shards.append(writer.finish(inserting))
    return shards


def _pick(sequences: Sequence[Path], places: Iterator[np.ndarray]) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Read the sequences at `places`, which ascend, from the files: (key and residues, places) in batches."""
    waiting = np.empty(0, np.int64)
    for number, path in enumerate(sequences):
        begin = number << 32
        # With pre_buffer, which is the default, pyarrow would keep the whole file in memory.
        for rows in pq.ParquetFile(path, pre_buffer=False).iter_batches(_BATCH, columns=SHARD.names):
            end = begin + len(rows)
            while (not waiting.size or waiting[-1] < end) and (more := next(places, None)) is not None:
                waiting = np.concatenate([waiting, more])
            count = np.searchsorted(waiting, end)
            if count:
                yield pa.Table.from_batches([rows.take(pa.array(waiting[:count] - begin))], SHARD), waiting[:count]
            waiting, begin = waiting[count:], end


class _ShardWriter:
    """Writes one shard piece by piece; its name follows from what was written."""

    def __init__(self, directory: Path, spec: ModelSpec, descriptor: Descriptor, batch: Batch) -> None:
        self._directory, self._batch, self._model = directory, batch, spec.name
        self._path = directory / "unnamed"
        self._writer = pq.ParquetWriter(self._path, SHARD, compression="zstd")
        space = Space(descriptor.sha256, batch.treatment, spec.precision)
        self._digest = hashlib.sha256(f"{space.directory} {' '.join(map(str, batch.outputs))}\n".encode())
        self._places: list[np.ndarray] = []
        self._residues, self._cost, self._value_bytes = 0, 0.0, 0

    def add(self, table: pa.Table, places: np.ndarray, residues: int, cost: float, value_bytes: int) -> None:
        self._writer.write_table(table)
        for key in table["key"].to_pylist():
            self._digest.update(key)
        self._places.append(places)
        self._residues += residues
        self._cost += cost
        self._value_bytes += value_bytes

    def finish(self, connection: duckdb.DuckDBPyConnection) -> Shard:
        self._writer.close()
        name = self._digest.hexdigest()[:16]
        file = f"{name}.parquet"
        self._path.rename(self._directory / file)
        places = np.concatenate(self._places)
        connection.register("written", pa.table({"place": places}))
        connection.execute("INSERT INTO cut SELECT place, $1 FROM written", [name])
        connection.unregister("written")
        return Shard(
            name,
            self._model,
            file,
            self._batch.treatment,
            self._batch.outputs,
            len(places),
            self._residues,
            self._cost,
            self._value_bytes,
        )
