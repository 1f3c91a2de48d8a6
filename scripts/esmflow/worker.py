"""The long-lived worker of a job: loads its model once, works through its shards, writes a receipt last."""

import json
import logging
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from esmflow import __version__, files, weights
from esmflow.descriptor import Descriptor
from esmflow.engine import Engine, choose_device, choose_precision
from esmflow.errors import DataError
from esmflow.jobs import SHARD, Job, Shard
from esmflow.model import Esm
from esmflow.progress import WorkProgress
from esmflow.store import Space, Store

log = logging.getLogger(__name__)


def work(
    job_file: Path,
    store: Store,
    receipt: Path,
    *,
    device: str,
    threads: int,
    tokens_per_pack: int | None,
    attention: str,
) -> None:
    """Embed the shards of a job that are not in the store, commit each in one step, then write the receipt.

    Raises DataError if the weights are not those that were planned with, DeviceError if the device is not usable.
    """
    start = time.monotonic()
    job = Job.load(job_file)
    descriptor = Descriptor.load(Path(job.descriptor))
    spaces = {shard.name: Space(descriptor.sha256, shard.treatment, job.precision) for shard in job.shards}
    pending = [shard for shard in job.shards if not store.path(spaces[shard.name], shard.name).exists()]
    log.info("job %s: %d shards, %d of them in the store", job.name, len(job.shards), len(job.shards) - len(pending))
    engine = None
    if pending:
        target = choose_device(device)
        precision = choose_precision(job.precision, target)
        engine = Engine(
            _load(descriptor, target, precision, attention),
            tokens_per_pack=tokens_per_pack,
            threads=threads,
            exact=lambda: _load(descriptor, target, "fp32", "auto"),
        )
        log.info(
            "model %s on %s after %.1f s; %s, attention %s, %d tokens per pack, %d threads",
            job.model,
            target,
            time.monotonic() - start,
            precision,
            engine.model.attention,
            engine.tokens_per_pack,
            threads,
        )
        progress = WorkProgress(
            log,
            sum(shard.sequences for shard in pending),
            sum(shard.residues for shard in pending),
            sum(shard.cost for shard in pending),
        )
        for shard in pending:
            _embed(shard, spaces[shard.name], job, descriptor, engine, store, progress)
    _write_receipt(receipt, job, pending, spaces, store, engine, time.monotonic() - start)


def _load(descriptor: Descriptor, device: torch.device, precision: str, attention: str) -> Esm:
    parts = [Path(file) for file in descriptor.files]
    size = sum(part.stat().st_size for part in parts if part.exists())
    if size != descriptor.bytes:
        raise DataError(
            f"{parts[0]}: weights are missing or have changed since they were fetched "
            f"({size:,} bytes, were {descriptor.bytes:,}); run again with --forcerun fetch_model"
        )
    return Esm(weights.read(parts), device, precision=precision, attention=attention)


def _embed(
    shard: Shard,
    space: Space,
    job: Job,
    descriptor: Descriptor,
    engine: Engine,
    store: Store,
    progress: WorkProgress,
) -> None:
    table = pq.read_table(shard.file, schema=SHARD)
    sequences = table["residues"].to_pylist()
    embedded = engine.embed(sequences, shard.outputs, shard.treatment, progress.add)
    metadata = {
        "model": job.model,
        "weights_sha256": descriptor.sha256,
        "treatment": shard.treatment,
        "precision": engine.model.precision,
        "attention": engine.model.attention,
    }
    keys: pa.Array = table["key"].combine_chunks()
    store.commit(space, shard.name, keys, embedded.reasons, embedded.vectors, metadata)
    log.info("shard %s committed: %s sequences", shard.name, f"{len(sequences):,}")


def _write_receipt(
    receipt: Path,
    job: Job,
    computed: list[Shard],
    spaces: dict[str, Space],
    store: Store,
    engine: Engine | None,
    seconds: float,
) -> None:
    computed_names = {shard.name for shard in computed}
    shards, skipped = [], []
    for shard in job.shards:
        path = store.path(spaces[shard.name], shard.name)
        table = pq.read_table(path, columns=["key", "reason"], filters=[("reason", "!=", "")])
        skipped += [{"key": row["key"].hex(), "reason": row["reason"]} for row in table.to_pylist()]
        shards.append(
            {
                "name": shard.name,
                "file": str(path.relative_to(store.root)),
                "sha256": files.sha256(path),
                "sequences": shard.sequences,
                "residues": shard.residues,
                "computed": shard.name in computed_names,
            }
        )
    content = {
        "job": job.name,
        "model": job.model,
        "serves": job.serves,
        "sequences": sum(shard.sequences for shard in job.shards),
        "sequences_computed": sum(shard.sequences for shard in computed),
        "shards": shards,
        "skipped": skipped,
        "figures": _figures(engine, sum(shard.cost for shard in computed), seconds),
        "versions": {"esmflow": __version__, "python": sys.version.split()[0]}
        | {package: version(package) for package in ("torch", "numpy", "pyarrow")},
    }
    files.write_text(receipt, json.dumps(content, indent=1) + "\n")


def _figures(engine: Engine | None, flops: float, seconds: float) -> dict[str, object]:
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    general: dict[str, object] = {"seconds": round(seconds, 3), "peak_memory_bytes": peak}
    if engine is None:
        return general
    figures = engine.figures
    return general | {
        "device": str(engine.model.device),
        "precision": engine.model.precision,
        "attention": engine.model.attention,
        "tokens_per_pack": engine.tokens_per_pack,
        "packs": figures.packs,
        "tokens": figures.tokens,
        "pack_fill": round(figures.fill, 4),
        "engine_seconds": round(figures.seconds, 3),
        "residues_per_second": round(figures.residues / figures.seconds, 1),
        "flops_per_second": round(flops / figures.seconds),
    }
