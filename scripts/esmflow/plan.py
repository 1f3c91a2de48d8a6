"""The plan: which sequences are missing from the store, cut into shards and dealt to worker jobs."""

import hashlib
import heapq
import json
import logging
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from esmflow import database, estimate, files
from esmflow.descriptor import Descriptor
from esmflow.jobs import SHARD, Job, Shard
from esmflow.spec import WHOLE, ModelSpec, Output
from esmflow.store import Space, Store, damaged
from esmflow.treatment import cost, kept, value_bytes

#: A shard's vectors are held in memory until it is committed.
MAX_SHARD_BYTES = 256 << 20
_BATCH = 20_000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sizes:
    """How work is divided and done; changes no result."""

    target_minutes: float
    max_jobs: int
    gpus_per_job: int
    threads: int
    """CPU threads of a job."""
    tokens_per_pack: int | None
    """None if the worker is to choose."""

    @property
    def shard_cost(self) -> float:
        """FLOPs of a shard. What receipts tell is left out, so that the same work is always cut alike."""
        kind = ("cuda", "16 bit") if self.gpus_per_job else ("cpu", "fp32")
        return self.target_minutes * 60 * estimate.ASSUMED_RATES[kind]


@dataclass(frozen=True)
class _Batch:
    """Missing sequences that are treated alike and lack the same outputs."""

    treatment: str
    outputs: list[Output]
    found: list[str]
    """The values of `found` in table `todo` that make up the batch."""


def plan(
    specs: Sequence[ModelSpec],
    descriptors: Mapping[str, Path],
    sequences: Mapping[str, Path],
    store: Store,
    receipts: Path,
    directory: Path,
    sizes: Sizes,
) -> None:
    """Write `directory`: `plan.json`, `jobs/{job}.json` and `shards/{shard}.parquet`.

    descriptors: a path per model; sequences: a path per sample. `plan.json` lists the jobs, with the minutes and the
    memory of the host (`memory_mb`, of 2^20 bytes) that each is expected to take. For each feature table it lists the
    jobs whose receipts it needs: those of this plan, and those of earlier ones (from `receipts`), so that a table that
    gains nothing keeps its inputs. Names are derived from content.
    Raises ConfigError for a layer or length that a model does not have.
    """
    models = {spec.name: Descriptor.load(descriptors[spec.name]) for spec in specs}
    outputs = {spec.name: spec.outputs(models[spec.name].architecture.layers) for spec in specs}
    for spec in specs:
        spec.check(models[spec.name].architecture)
    with files.atomic_directory(directory) as work:
        (work / "shards").mkdir()
        shards: dict[str, list[Shard]] = {}
        served: defaultdict[str, set[str]] = defaultdict(set)
        with database.connect(work / "plan") as connection:
            longest = _load(connection, sequences)
            for spec in specs:
                connection.execute("CREATE OR REPLACE TABLE cut (key BLOB, shard VARCHAR)")
                batches = _missing(connection, spec, models[spec.name], outputs[spec.name], store)
                shards[spec.name] = [
                    shard
                    for batch in batches
                    for shard in _cut(connection, spec, models[spec.name], batch, sizes, work / "shards")
                ]
                for shard_name, table in _served(connection, list(sequences), spec.name, shards[spec.name]):
                    served[shard_name].add(table)

        earlier = _receipts(receipts)
        jobs = []
        summaries: dict[str, dict[str, object]] = {}
        for spec, count in zip(specs, _share([shards[spec.name] for spec in specs], sizes), strict=True):
            for dealt in deal(shards[spec.name], count):
                content = " ".join([spec.name, *sorted(shard.name for shard in dealt)])
                name = hashlib.sha256(content.encode()).hexdigest()[:12]
                serves = sorted(set().union(*(served[shard.name] for shard in dealt)))
                located = [_at(shard, directory) for shard in dealt]
                job = Job(name, spec.name, str(descriptors[spec.name]), spec.precision, serves, located)
                job.save(work / "jobs" / f"{name}.json")
                jobs.append(job)
                summaries[name] = _summary(job, spec, models[spec.name], longest, earlier.values(), sizes)
        for name in summaries.keys() & earlier.keys():
            # Planned again, its earlier receipt speaks of what the store has lost since.
            (receipts / f"{name}.json").unlink()
            del earlier[name]

        needs: dict[str, set[str]] = {
            _table(sample, spec.name, output): set()
            for spec in specs
            for output in outputs[spec.name]
            for sample in sequences
        }
        for name, tables in [
            *((job.name, job.serves) for job in jobs),
            *((name, receipt["serves"]) for name, receipt in earlier.items()),
        ]:
            for table in needs.keys() & set(tables):
                needs[table].add(name)
        summary = {"jobs": summaries, "tables": {table: sorted(names) for table, names in needs.items()}}
        files.write_text(work / "plan.json", json.dumps(summary, indent=1) + "\n")
    log.info("%d shards in %d jobs", sum(map(len, shards.values())), len(jobs))


def deal(shards: Sequence[Shard], jobs: int) -> list[list[Shard]]:
    """Deal shards to so many jobs, longest processing time first (Graham 1969, doi:10.1137/0117039)."""
    loads = [(0.0, number) for number in range(jobs)]
    dealt: list[list[Shard]] = [[] for _ in range(jobs)]
    for shard in sorted(shards, key=lambda shard: (-shard.cost, shard.name)):
        load, number = heapq.heappop(loads)
        dealt[number].append(shard)
        heapq.heappush(loads, (load + shard.cost, number))
    return dealt


def _share(shards: Sequence[Sequence[Shard]], sizes: Sizes) -> list[int]:
    """The number of jobs for each model: one each, the rest one by one to the model with the dearest jobs.

    A job that has less to do than a full shard is not worth the loading of its model.
    """
    jobs = [min(len(own), 1) for own in shards]
    cost = [sum(shard.cost for shard in own) for own in shards]
    while sum(jobs) < min(sizes.max_jobs, math.ceil(sum(cost) / sizes.shard_cost)):
        growable = [model for model, own in enumerate(shards) if len(own) > jobs[model]]
        if not growable:
            break
        jobs[max(growable, key=lambda model: cost[model] / jobs[model])] += 1
    return jobs


def _at(shard: Shard, directory: Path) -> Shard:
    """The shard with its file's place in the finished plan."""
    return Shard(**shard.__dict__ | {"file": str(directory / "shards" / shard.file)})


def _table(sample: str, model: str, output: Output) -> str:
    return f"{sample}/{model}/{output.file_stem}"


def _summary(
    job: Job,
    spec: ModelSpec,
    descriptor: Descriptor,
    longest: int,
    receipts: Collection[Mapping[str, Any]],
    sizes: Sizes,
) -> dict[str, object]:
    """What `plan.json` tells of a job. longest: residues of the longest sequence of all samples."""
    rate = estimate.rate(receipts, spec.name, spec.precision, sizes.gpus_per_job)
    memory = estimate.memory_mb(
        descriptor,
        {output for shard in job.shards for output in shard.outputs},
        device=rate.device,
        threads=sizes.threads,
        longest=longest if spec.long_treatment == WHOLE else min(longest, spec.max_length),
        tokens_per_pack=sizes.tokens_per_pack,
        shard_bytes=max(shard.value_bytes for shard in job.shards),
    )
    return {
        "model": job.model,
        "shards": len(job.shards),
        "sequences": sum(shard.sequences for shard in job.shards),
        "cost": job.cost,
        "minutes": round(estimate.minutes(descriptor, job.cost, rate), 2),
        "memory_mb": memory,
    }


def _receipts(directory: Path) -> dict[str, dict[str, Any]]:
    """Model, figures and tables served of each receipt on disk."""
    return {
        path.stem: {name: content[name] for name in ("model", "figures", "serves")}
        for path in sorted(directory.glob("[!.]*.json"))
        for content in [json.loads(path.read_text(encoding="utf-8"))]
    }


def _load(connection: duckdb.DuckDBPyConnection, sequences: Mapping[str, Path]) -> int:
    """Make tables `entry` (sample, key) and `wanted` (unique key, length); return the greatest length."""
    paths = [str(path) for path in sequences.values()]
    connection.execute(
        "CREATE TABLE entry AS SELECT list_position($1, filename) - 1 AS sample, key, any_value(length) AS length "
        "FROM read_parquet($1, filename = true) GROUP BY ALL",
        [paths],
    )
    connection.execute("CREATE VIEW source AS SELECT key, residues FROM read_parquet(" + _literal(paths) + ")")
    connection.execute("CREATE TABLE wanted AS SELECT key, any_value(length) AS length FROM entry GROUP BY key")
    [(longest,)] = connection.execute("SELECT coalesce(max(length), 0) FROM wanted").fetchall()
    return int(longest)


def _literal(paths: Iterable[str]) -> str:
    return "[" + ", ".join("'" + path.replace("'", "''") + "'" for path in paths) + "]"


def _missing(
    connection: duckdb.DuckDBPyConnection,
    spec: ModelSpec,
    descriptor: Descriptor,
    outputs: Sequence[Output],
    store: Store,
) -> list[_Batch]:
    """Make table `todo` (key, length, treatment, found) and return the batches that have missing outputs.

    `found` says which groups of store files, each with the same outputs, hold the sequence.
    """
    groups: list[frozenset[Output]] = []
    connection.execute("CREATE OR REPLACE TABLE have (key BLOB, treatment VARCHAR, found INTEGER)")
    for treatment in spec.treatments:
        by_outputs: defaultdict[frozenset[Output], list[str]] = defaultdict(list)
        for file in store.files(Space(descriptor.sha256, treatment, spec.precision)):
            by_outputs[file.outputs & frozenset(outputs)].append(str(file.path))
        for held, paths in by_outputs.items():
            if held:
                try:
                    connection.execute(
                        "INSERT INTO have SELECT key, $1, $2 FROM read_parquet($3) "
                        "WHERE key IN (SELECT key FROM wanted)",
                        [treatment, len(groups), paths],
                    )
                except database.UNREADABLE as error:
                    raise damaged(Path(paths[0]).parent, error) from error
                groups.append(held)
    connection.execute(
        """
        CREATE OR REPLACE TABLE todo AS
        SELECT key, any_value(length) AS length, treatment,
               coalesce(string_agg(DISTINCT found::VARCHAR, ',' ORDER BY found::VARCHAR), '') AS found
        FROM (SELECT key, length, CASE WHEN length <= $1 THEN $2 ELSE $3 END AS treatment FROM wanted)
        LEFT JOIN have USING (key, treatment)
        WHERE treatment IS NOT NULL
        GROUP BY key, treatment
        """,
        [spec.max_length, WHOLE, spec.long_treatment],
    )
    batches: dict[tuple[str, tuple[Output, ...]], list[str]] = {}
    rows = connection.execute("SELECT treatment, found, count(*) FROM todo GROUP BY ALL ORDER BY ALL").fetchall()
    for treatment, found, count in rows:
        held_outputs = frozenset().union(*(groups[int(number)] for number in found.split(",") if number))
        missing = tuple(output for output in outputs if output not in held_outputs)
        log.info(
            "%s: %s sequences (%s) have %d of %d outputs",
            spec.name,
            f"{count:,}",
            treatment,
            len(outputs) - len(missing),
            len(outputs),
        )
        if missing:
            batches.setdefault((treatment, missing), []).append(found)
    return [_Batch(treatment, list(missing), found) for (treatment, missing), found in batches.items()]


def _cut(
    connection: duckdb.DuckDBPyConnection,
    spec: ModelSpec,
    descriptor: Descriptor,
    batch: _Batch,
    sizes: Sizes,
    directory: Path,
) -> list[Shard]:
    """Cut a batch, in order of the keys, into shards of equal cost, write them, and note who is where."""
    shape = descriptor.architecture
    depth = max(output.layer for output in batch.outputs)
    select = "FROM todo WHERE treatment = $1 AND list_contains($2, found)"
    parameters = [batch.treatment, batch.found]

    histogram = connection.execute(f"SELECT length, count(*) AS n {select} GROUP BY length", parameters).fetchnumpy()
    total = float((histogram["n"] * cost(shape, histogram["length"], batch.treatment, depth)).sum())
    count = int(histogram["n"].sum())
    residues = kept(histogram["length"], batch.treatment)
    size = sum(int(histogram["n"] @ value_bytes(shape, residues, output)) for output in batch.outputs)
    pieces = min(count, max(math.ceil(total / sizes.shard_cost), math.ceil(size / MAX_SHARD_BYTES)))

    inserting = connection.cursor()
    rows = connection.sql(
        f"SELECT key, any_value(residues) AS residues FROM source WHERE key IN (SELECT key {select}) "
        "GROUP BY key ORDER BY key",
        params=parameters,
    ).to_arrow_reader(_BATCH)
    shards: list[Shard] = []
    writer: _ShardWriter | None = None
    done, piece = 0.0, -1
    for rows_batch in rows:
        table = pa.Table.from_batches([rows_batch]).cast(SHARD)
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
            writer.add(table.slice(first, last - first), int(residues.sum()), float(costs[own].sum()), size)
    if writer:
        shards.append(writer.finish(inserting))
    return shards


class _ShardWriter:
    """Writes one shard piece by piece; its name follows from what was written."""

    def __init__(self, directory: Path, spec: ModelSpec, descriptor: Descriptor, batch: _Batch) -> None:
        self._directory, self._batch = directory, batch
        self._path = directory / "unnamed"
        self._writer = pq.ParquetWriter(self._path, SHARD, compression="zstd")
        space = Space(descriptor.sha256, batch.treatment, spec.precision)
        self._digest = hashlib.sha256(f"{space.directory} {' '.join(map(str, batch.outputs))}\n".encode())
        self._keys: list[pa.ChunkedArray] = []
        self._residues, self._cost, self._value_bytes = 0, 0.0, 0

    def add(self, table: pa.Table, residues: int, cost: float, value_bytes: int) -> None:
        self._writer.write_table(table)
        for key in table["key"].to_pylist():
            self._digest.update(key)
        self._keys.append(table["key"])
        self._residues += residues
        self._cost += cost
        self._value_bytes += value_bytes

    def finish(self, connection: duckdb.DuckDBPyConnection) -> Shard:
        self._writer.close()
        name = self._digest.hexdigest()[:16]
        file = f"{name}.parquet"
        self._path.rename(self._directory / file)
        keys = pa.chunked_array([chunk for column in self._keys for chunk in column.chunks])
        connection.register("written", pa.table({"key": keys, "shard": pa.repeat(name, len(keys))}))
        connection.execute("INSERT INTO cut SELECT key, shard FROM written")
        connection.unregister("written")
        return Shard(
            name,
            file,
            self._batch.treatment,
            self._batch.outputs,
            len(keys),
            self._residues,
            self._cost,
            self._value_bytes,
        )


def _served(
    connection: duckdb.DuckDBPyConnection, samples: Sequence[str], model: str, shards: Sequence[Shard]
) -> Iterator[tuple[str, str]]:
    """(shard, table that needs it) for a model's shards."""
    outputs = {shard.name: shard.outputs for shard in shards}
    for shard, sample in connection.execute("SELECT DISTINCT shard, sample FROM cut JOIN entry USING (key)").fetchall():
        for output in outputs[shard]:
            yield shard, _table(samples[sample], model, output)
