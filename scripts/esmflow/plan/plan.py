"""The plan: what is missing from the store, in shards that are dealt to worker jobs."""

import hashlib
import heapq
import json
import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq

from esmflow import database, files
from esmflow.descriptor import Descriptor
from esmflow.errors import DataError
from esmflow.jobs import Job, JobModel, Shard
from esmflow.plan import estimate
from esmflow.plan.missing import load_sequences, missing_batches
from esmflow.plan.preflight import Preflight
from esmflow.plan.shards import cut
from esmflow.spec import WHOLE, ModelSpec, Output
from esmflow.store.store import Store
from esmflow.treatment import kept, value_bytes

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
    part_bytes: float = math.inf
    """Of vectors, beyond which a feature table is written in parts."""
    mix_models: bool = False
    """Whether a job may have shards of several models."""
    local: bool = False
    """Whether the jobs run on this machine."""

    @property
    def shard_cost(self) -> float:
        """FLOPs of a shard. What receipts tell is left out, so that the same work is always cut alike."""
        kind = ("cuda", "16 bit") if self.gpus_per_job else ("cpu", "fp32")
        return self.target_minutes * 60 * estimate.ASSUMED_RATES[kind]


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
    gains nothing keeps its inputs; and it tells which tables are so large that they are to be written in parts.
    Names are derived from content.
    Raises ConfigError for a layer or length that a model does not have; DataError for a damaged receipt; WriteError or
    DeviceError if it is sure that what is planned does not fit on the disks or into memory.
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
            longest = load_sequences(connection, sequences)
            for spec in specs:
                connection.execute("CREATE OR REPLACE TABLE cut (place BIGINT, shard VARCHAR)")
                batches = missing_batches(connection, spec, models[spec.name], outputs[spec.name], store)
                shards[spec.name] = [
                    shard
                    for batch in batches
                    for shard in cut(
                        connection,
                        spec,
                        models[spec.name],
                        batch,
                        list(sequences.values()),
                        work / "shards",
                        shard_cost=sizes.shard_cost,
                    )
                ]
                for shard_name, table in _served(connection, list(sequences), spec.name, shards[spec.name]):
                    served[shard_name].add(table)

            lengths = connection.execute(
                "SELECT sample, length, count(*) AS n FROM entry GROUP BY ALL ORDER BY ALL"
            ).fetchnumpy()

        earlier = _receipts(receipts)
        jobs = [_job(dealt, specs, descriptors, served, directory) for dealt in _deal_all(list(shards.values()), sizes)]
        rates = {
            spec.name: estimate.rate(earlier.values(), spec.name, spec.precision, sizes.gpus_per_job) for spec in specs
        }
        summaries = {job.name: _summary(job, specs, models, rates, longest, sizes) for job in jobs}
        gaining = set().union(*(job.serves for job in jobs))
        table_bytes = sum(
            _table_bytes(spec, models[spec.name], output, path, lengths, number)
            for spec in specs
            for output in outputs[spec.name]
            for number, (sample, path) in enumerate(sequences.items())
            if (name := _table(sample, spec.name, output)) in gaining and not any(directory.parent.glob(f"*/{name}.*"))
        )
        preflight = _preflight(jobs, summaries, models, rates, sizes, table_bytes)
        log.info("%s", preflight.text(store.root, directory.parent))
        preflight.require_room(store.root, directory.parent, local=sizes.local)
        for job in jobs:
            job.save(work / "jobs" / f"{job.name}.json")
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
        summary = {
            "preflight": asdict(preflight),
            "jobs": summaries,
            "tables": {table: sorted(names) for table, names in needs.items()},
            "in_parts": sorted(_in_parts(models, outputs, sequences, sizes.part_bytes)),
        }
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


def _deal_all(shards: Sequence[Sequence[Shard]], sizes: Sizes) -> list[list[Shard]]:
    """The shards of each job, from those of each model."""
    if not sizes.mix_models:
        counts = _share(shards, sizes)
        return [dealt for own, count in zip(shards, counts, strict=True) for dealt in deal(own, count)]
    together = [shard for own in shards for shard in own]
    full = math.ceil(sum(shard.cost for shard in together) / sizes.shard_cost)
    order = {own[0].model: number for number, own in enumerate(shards) if own}
    dealt = deal(together, min(sizes.max_jobs, full, len(together)))
    return [sorted(own, key=lambda shard: order[shard.model]) for own in dealt]


def _job(
    shards: Sequence[Shard],
    specs: Sequence[ModelSpec],
    descriptors: Mapping[str, Path],
    served: Mapping[str, set[str]],
    directory: Path,
) -> Job:
    """A job of these shards, as it will lie in `directory`. Its name follows from its content."""
    held = {shard.model for shard in shards}
    content = " ".join([*sorted(held), *sorted(shard.name for shard in shards)])
    return Job(
        hashlib.sha256(content.encode()).hexdigest()[:12],
        {spec.name: JobModel(str(descriptors[spec.name]), spec.precision) for spec in specs if spec.name in held},
        sorted(set().union(*(served[shard.name] for shard in shards))),
        [replace(shard, file=str(directory / "shards" / shard.file)) for shard in shards],
    )


def _summary(
    job: Job,
    specs: Sequence[ModelSpec],
    models: Mapping[str, Descriptor],
    rates: Mapping[str, estimate.Rate],
    longest: int,
    sizes: Sizes,
) -> dict[str, object]:
    """What `plan.json` tells of a job. longest: residues of the longest sequence of all samples."""
    minutes, memory = 0.0, 0
    for spec in specs:
        if shards := [shard for shard in job.shards if shard.model == spec.name]:
            descriptor, rate = models[spec.name], rates[spec.name]
            minutes += estimate.minutes(descriptor, sum(shard.cost for shard in shards), rate)
            needed = estimate.memory_mb(
                descriptor,
                {output for shard in shards for output in shard.outputs},
                device=rate.device,
                threads=sizes.threads,
                longest=longest if spec.long_treatment == WHOLE else min(longest, spec.max_length),
                tokens_per_pack=sizes.tokens_per_pack,
                shard_bytes=max(shard.value_bytes for shard in shards),
            )
            memory = max(memory, needed)
    return {
        "models": list(job.models),
        "shards": len(job.shards),
        "sequences": sum(shard.sequences for shard in job.shards),
        "cost": job.cost,
        "minutes": round(minutes, 2),
        "memory_mb": memory,
    }


def _preflight(
    jobs: Sequence[Job],
    summaries: Mapping[str, Mapping[str, Any]],
    models: Mapping[str, Descriptor],
    rates: Mapping[str, estimate.Rate],
    sizes: Sizes,
    table_bytes: int,
) -> Preflight:
    """What all the jobs will take."""
    working = set().union(*(job.models for job in jobs))
    minutes = [summary["minutes"] for summary in summaries.values()]
    return Preflight(
        jobs=len(jobs),
        sequences=sum(summary["sequences"] for summary in summaries.values()),
        device=max((rates[name].device for name in working), default=""),
        device_hours=round(sum(minutes) / 60 * max(sizes.gpus_per_job, 1), 3),
        longest_minutes=max(minutes, default=0.0),
        measured=all(rates[name].measured for name in working),
        memory_mb=max((summary["memory_mb"] for summary in summaries.values()), default=0),
        weights_bytes=4 * max((models[name].architecture.matrix_numbers for name in working), default=0),
        store_bytes=sum(shard.value_bytes for job in jobs for shard in job.shards),
        table_bytes=table_bytes,
    )


def _table_bytes(
    spec: ModelSpec,
    descriptor: Descriptor,
    output: Output,
    sequences: Path,
    lengths: Mapping[str, np.ndarray],
    sample: int,
) -> int:
    """Bytes of a sample's values of an output in its table (every record) or residue file (every sequence once).

    lengths: columns sample (its number), length, n (sequences of that length).
    """
    if not output.ragged:
        return int(pq.read_metadata(sequences).num_rows) * descriptor.architecture.embed_dim * 4
    own = lengths["sample"] == sample
    length, count = lengths["length"][own], lengths["n"][own]
    long = kept(length, spec.long_treatment) if spec.long_treatment else np.zeros_like(length)
    residues = np.where(length <= spec.max_length, length, long)
    return int(count @ value_bytes(descriptor.architecture, residues, output))


def _table(sample: str, model: str, output: Output) -> str:
    return f"{sample}/{model}/{output.file_stem}"


def _receipts(directory: Path) -> dict[str, dict[str, Any]]:
    """Model, figures and tables served of each receipt on disk. Raises DataError for a damaged one."""
    found = {}
    for path in sorted(directory.glob("[!.]*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found[path.stem] = {name: content[name] for name in ("models", "figures", "serves")}
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: receipt is damaged ({error!r}); delete it and run again") from error
    return found


def _in_parts(
    models: Mapping[str, Descriptor],
    outputs: Mapping[str, Sequence[Output]],
    sequences: Mapping[str, Path],
    part_bytes: float,
) -> Iterator[str]:
    """The tables of vectors that are larger than a part, if every valid record is embedded."""
    for sample, path in sequences.items():
        records = pq.read_metadata(path).num_rows
        for model, descriptor in models.items():
            if records * descriptor.architecture.embed_dim * 4 > part_bytes:
                yield from (_table(sample, model, output) for output in outputs[model] if not output.ragged)


def _served(
    connection: duckdb.DuckDBPyConnection, samples: Sequence[str], model: str, shards: Sequence[Shard]
) -> Iterator[tuple[str, str]]:
    """(shard, table that needs it) for a model's shards."""
    outputs = {shard.name: shard.outputs for shard in shards}
    found = connection.execute(
        "SELECT DISTINCT shard, sample FROM cut JOIN wanted USING (place) JOIN entry USING (key)"
    ).fetchall()
    for shard, sample in found:
        for output in outputs[shard]:
            yield shard, _table(samples[sample], model, output)
