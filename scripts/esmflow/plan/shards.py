"""Shards: what is missing, cut into pieces of equal cost."""

import hashlib
import math
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from esmflow.job import SHARD, Shard
from esmflow.plan.missing import Batch, WorkList
from esmflow.planned_model import PlannedModel
from esmflow.results import Results
from esmflow.sealed import seal
from esmflow.store.store import Store

#: A shard's vectors are held in memory until it is committed.
_MAX_BYTES = 256 << 20


def cut(
    work_list: WorkList,
    model: PlannedModel,
    batch: Batch,
    store: Store,
    results: Results,
    directory: Path,
    *,
    shard_cost: float,
) -> list[Shard]:
    """Cut a batch, in order of the samples, into shards of `shard_cost` FLOPs at most, and write them.

    directory: where the shards are put for now; their paths are those that they have in the results once the plan is
    whole. The work list notes which sequence went into which.
    """
    shards = []
    for _, slices in groupby(_slices(work_list, model, batch, shard_cost), key=itemgetter(0)):
        writer = _ShardWriter(directory, model, batch)
        for _, table, places in slices:
            writer.add(table, places)
        shards.append(writer.finish(work_list, store, results))
    return shards


def _slices(
    work_list: WorkList, model: PlannedModel, batch: Batch, shard_cost: float
) -> Iterator[tuple[int, pa.Table, np.ndarray]]:
    """A batch's sequences with the number of their shard: (number, table of key and residues, int64 places).

    A sequence goes to the shard in whose share of the batch's cost it has its middle.
    """
    lengths, counts = work_list.histogram(batch)
    total = float((counts * _costs(model, batch, lengths)).sum())
    size = int(counts @ _value_bytes(model, batch, lengths))
    shards = min(int(counts.sum()), max(math.ceil(total / shard_cost), math.ceil(size / _MAX_BYTES)))
    done = 0.0
    for table, places in work_list.sequences(batch):
        costs = _costs(model, batch, _lengths(table))
        middles = done + np.cumsum(costs) - costs / 2
        done += costs.sum()
        numbers = np.minimum((middles * (shards / total)).astype(np.int64), shards - 1)
        for number in np.unique(numbers):
            first, stop = np.searchsorted(numbers, [number, number + 1])
            yield int(number), table.slice(first, stop - first), places[first:stop]


def _lengths(table: pa.Table) -> np.ndarray:
    """Residues of each sequence: int [sequences]."""
    lengths: np.ndarray = pc.binary_length(table["residues"]).to_numpy()
    return lengths


def _costs(model: PlannedModel, batch: Batch, lengths: np.ndarray) -> np.ndarray:
    """FLOPs that a batch's outputs take of sequences of so many residues: float64 [sequences]."""
    depth = max(output.layer for output in batch.outputs)
    return batch.treatment.cost(model.architecture, lengths, depth)


def _value_bytes(model: PlannedModel, batch: Batch, lengths: np.ndarray) -> np.ndarray:
    """Bytes of a batch's outputs, in float32, of sequences of so many residues: int64 [sequences]."""
    kept = batch.treatment.kept(lengths)
    size: np.ndarray = np.sum([output.value_bytes(kept, model.architecture) for output in batch.outputs], 0)
    return size


class _ShardWriter:
    """Writes one shard piece by piece; its name follows from what was written."""

    def __init__(self, directory: Path, model: PlannedModel, batch: Batch) -> None:
        self._model, self._batch = model, batch
        self._path = directory / "unnamed"
        self._writer = pq.ParquetWriter(self._path, SHARD, compression="zstd")
        space = model.space(batch.treatment)
        self._digest = hashlib.sha256(f"{space.directory} {' '.join(map(str, batch.outputs))}\n".encode())
        self._places: list[np.ndarray] = []
        self._residues, self._cost, self._value_bytes = 0, 0.0, 0

    def add(self, table: pa.Table, places: np.ndarray) -> None:
        self._writer.write_table(table)
        for key in table["key"].to_pylist():
            self._digest.update(key)
        self._places.append(places)
        lengths = _lengths(table)
        kept = self._batch.treatment.kept(lengths)
        self._residues += int(kept.sum())
        self._cost += float(_costs(self._model, self._batch, lengths).sum())
        self._value_bytes += sum(int(self._model.stored_bytes(output, kept).sum()) for output in self._batch.outputs)

    def finish(self, work_list: WorkList, store: Store, results: Results) -> Shard:
        self._writer.close()
        seal(self._path)
        spaces = self._model.spaces_of(self._batch.treatment)
        # What is committed under a name is not computed again, so that another attempt has a name of its own.
        while store.has_shortages(spaces, name := self._digest.hexdigest()[:16]):
            self._digest.update(b"another attempt")
        file = results.shard(name)
        self._path.rename(self._path.with_name(file.name))
        places = np.concatenate(self._places)
        work_list.note(name, places)
        return Shard(
            name=name,
            model=self._model.name,
            file=str(file),
            treatment=self._batch.treatment,
            outputs=self._batch.outputs,
            sequences=len(places),
            residues=self._residues,
            cost=self._cost,
            value_bytes=self._value_bytes,
        )
