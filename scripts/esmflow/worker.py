"""The long-lived worker of a job: loads its model once, works through its shards, writes a receipt last."""

import json
import logging
import resource
import sys
import time
from collections import deque
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from esmflow import __version__, files, weights
from esmflow.check import SelfCheck, self_check
from esmflow.descriptor import Descriptor
from esmflow.device import auto_tokens, choose_device, choose_precision, free_memory, require_memory
from esmflow.engine import Embedded, Engine
from esmflow.errors import DataError
from esmflow.jobs import SHARD, Job, Shard
from esmflow.model import Esm
from esmflow.progress import WorkProgress
from esmflow.store import Space, Store, commit

#: One being computed while the other is committed.
_SHARDS_IN_HAND = 2

log = logging.getLogger(__name__)


class Worker:
    """A job's way through its shards. Those that the store has when it begins are passed over."""

    def __init__(self, job: Job, store: Store) -> None:
        self._job, self._store = job, store
        self._start = time.monotonic()
        self._descriptor = Descriptor.load(Path(job.descriptor))
        self._engine: Engine | None = None
        self._check: SelfCheck | None = None
        self._seconds = 0.0
        self.pending = [shard for shard in job.shards if not store.has(self._space(shard), shard.name)]

    def load(self, *, device: str, threads: int, tokens_per_pack: int | None, attention: str) -> None:
        """Load the model. Raises DataError if the weights are not those planned with, DeviceError if it cannot run."""
        target = choose_device(device)
        precision = choose_precision(self._job.precision, target)
        require_memory(self._descriptor.architecture, precision, target, free_memory(target))
        model = self._model(target, precision, attention)
        self._engine = Engine(
            model,
            tokens_per_pack=tokens_per_pack or auto_tokens(model),
            threads=threads,
            exact=None if precision == "fp32" else lambda: self._model(target, "fp32", "auto"),
        )
        log.info(
            "model %s on %s after %.1f s; %s, attention %s, %d tokens per pack, %d threads",
            self._job.model,
            target,
            time.monotonic() - self._start,
            precision,
            self._engine.model.attention,
            self._engine.tokens_per_pack,
            threads,
        )

    def embed(self) -> None:
        """Embed and commit the pending shards. The next one is in the engine's hands while one is committed."""
        assert self._engine is not None
        start = time.monotonic()
        progress = WorkProgress(
            log,
            sum(shard.sequences for shard in self.pending),
            sum(shard.residues for shard in self.pending),
            sum(shard.cost for shard in self.pending),
        )
        waiting = deque(self.pending)
        begun: dict[int, tuple[Shard, pa.Table]] = {}
        while waiting or begun:
            if waiting and len(begun) < _SHARDS_IN_HAND:
                shard = waiting.popleft()
                table = pq.read_table(shard.file, schema=SHARD)
                sequences = table["residues"].to_pylist()
                begun[self._engine.submit(sequences, shard.outputs, shard.treatment, progress.add)] = shard, table
            for ticket, embedded in self._engine.step():
                self._finish(*begun.pop(ticket), embedded)
        self._engine.close()
        self._seconds = time.monotonic() - start

    def _finish(self, shard: Shard, table: pa.Table, embedded: Embedded) -> None:
        assert self._engine is not None
        if self._check is None:
            sequences = table["residues"].to_pylist()
            self._check = self_check(self._engine, sequences, shard.outputs, shard.treatment, embedded)
        metadata = {
            "model": self._job.model,
            "weights_sha256": self._descriptor.sha256,
            "precision": self._engine.model.precision,
            "attention": self._engine.model.attention,
        }
        commit(self._path(shard), table["key"].combine_chunks(), embedded.reasons, embedded.values, metadata)
        log.info("shard %s committed: %s sequences", shard.name, f"{shard.sequences:,}")

    def receipt(self) -> dict[str, object]:
        """What the job did, read back from the store."""
        computed = {shard.name for shard in self.pending}
        shards, skipped = [], []
        for shard in self._job.shards:
            path = self._path(shard)
            table = pq.read_table(path, columns=["key", "reason"], filters=[("reason", "!=", "")])
            skipped += [{"key": row["key"].hex(), "reason": row["reason"]} for row in table.to_pylist()]
            shards.append(
                {
                    "name": shard.name,
                    "file": str(path.relative_to(self._store.root)),
                    "sha256": files.sha256(path),
                    "outputs": [str(output) for output in shard.outputs],
                    "sequences": shard.sequences,
                    "residues": shard.residues,
                    "computed": shard.name in computed,
                }
            )
        return {
            "job": self._job.name,
            "model": self._job.model,
            "serves": self._job.serves,
            "sequences": sum(shard.sequences for shard in self._job.shards),
            "sequences_computed": sum(shard.sequences for shard in self.pending),
            "shards": shards,
            "skipped": skipped,
            "self_check": asdict(self._check) if self._check else None,
            "figures": self._figures(),
            "versions": {"esmflow": __version__, "python": sys.version.split()[0]}
            | {package: version(package) for package in ("torch", "numpy", "pyarrow")},
        }

    def _space(self, shard: Shard) -> Space:
        return Space(self._descriptor.sha256, shard.treatment, self._job.precision)

    def _path(self, shard: Shard) -> Path:
        return self._store.path(self._space(shard), shard.name)

    def _model(self, device: torch.device, precision: str, attention: str) -> Esm:
        parts = [Path(file) for file in self._descriptor.files]
        if absent := [part for part in parts if not part.exists()]:
            raise DataError(f"{absent[0]}: weights are missing; run again with --forcerun fetch_model")
        if weights.stamp(parts) != self._descriptor.stamp and weights.digest(parts) != self._descriptor.sha256:
            raise DataError(
                f"{parts[0]}: weights have changed since they were fetched; run again with --forcerun fetch_model"
            )
        return Esm(weights.read(parts), device, precision=precision, attention=attention)

    def _figures(self) -> dict[str, object]:
        unit = 1 if sys.platform == "darwin" else 1024
        general: dict[str, object] = {
            "seconds": round(time.monotonic() - self._start, 3),
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        }
        if self._engine is None:
            return general
        model, figures = self._engine.model, self._engine.figures
        return general | {
            "device": str(model.device),
            "precision": model.precision,
            "attention": model.attention,
            "tokens_per_pack": self._engine.tokens_per_pack,
            "packs": figures.packs,
            "tokens": figures.tokens,
            "pack_fill": round(figures.fill, 4),
            "packs_split": figures.splits,
            "embed_seconds": round(self._seconds, 3),
            "residues_per_second": round(figures.residues / self._seconds, 1),
            "flops_per_second": round(sum(shard.cost for shard in self.pending) / self._seconds),
        }


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

    Raises DataError if the weights are not those planned with, DeviceError if the model cannot run on the device.
    """
    job = Job.load(job_file)
    worker = Worker(job, store)
    log.info("job %s: %d shards, %d of them to be embedded", job.name, len(job.shards), len(worker.pending))
    if worker.pending:
        worker.load(device=device, threads=threads, tokens_per_pack=tokens_per_pack, attention=attention)
        worker.embed()
    files.write_text(receipt, json.dumps(worker.receipt(), indent=1) + "\n")
