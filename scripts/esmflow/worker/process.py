"""What a process of the worker holds: a device, its models, and the way of a shard through them."""

import logging
import os
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace

import torch

from esmflow.engine.budget import auto_tokens
from esmflow.engine.device import usable_gpu
from esmflow.engine.engine import Engine
from esmflow.engine.figures import Figures
from esmflow.engine.self_check import self_check
from esmflow.model import weights
from esmflow.model.trunk import Esm
from esmflow.planned_model import PlannedModel
from esmflow.receipt import ModelUse
from esmflow.store.store import commit
from esmflow.worker.messages import EmbedShard, ProcessFigures, ShardDone, ShardProgress
from esmflow.worker.registry import ModelRegistry

#: Seconds between two reports of progress.
_INTERVAL = 1.0

Report = Callable[[ShardProgress], None]

log = logging.getLogger(__name__)


class Embedder:
    """Embeds shards with the models of a registry, and commits one while it computes the next.

    report: is told what is in hand, how far it is, and when it is computed.
    """

    def __init__(self, registry: ModelRegistry, report: Report) -> None:
        self.registry = registry
        self._report = report
        self._writer = ThreadPoolExecutor(1)
        self._unwritten: list[Future[ShardDone]] = []

    @classmethod
    def start(cls, report: Report, *, on_gpu: bool, threads: int, tokens_per_pack: int | None) -> "Embedder":
        """One on the GPU that this process sees, or on the CPU. Raises DeviceError if PyTorch cannot use the GPU."""
        device = usable_gpu() if on_gpu else torch.device("cpu")

        def load(model: PlannedModel, precision: str) -> Engine:
            return load_engine(model, precision, device, threads, tokens_per_pack)

        return cls(ModelRegistry(device, load), report)

    def embed(self, task: EmbedShard) -> Future[ShardDone]:
        """Embed a shard and begin to commit it; the future is done when it is committed."""
        start = time.monotonic()
        progress = _Progress(self._report, task)
        resident = self.registry.get(task.model)
        engine, ready = resident.engine, time.monotonic()
        engine.figures = figures = Figures()
        shard = task.shard
        keys, sequences = task.read()
        engine.submit(sequences, shard.outputs, shard.treatment, progress.add)
        [(_, embedded)] = engine.drain()
        resident.check = resident.check or self_check(engine, sequences, shard.outputs, shard.treatment, embedded)
        # One shard that is being written lies in memory beside the one in hand, and no more.
        wait(self._unwritten)
        use = ModelUse(
            device=str(engine.model.device),
            precision=engine.model.precision,
            attention=engine.model.attention,
            tokens_per_pack=engine.tokens_per_pack,
            weights_bytes=resident.bytes,
            self_check=resident.check,
            flops=task.cost,
            computing_seconds=time.monotonic() - ready,
            kernels=engine.model.kernels,
        )
        metadata = {
            "model": task.model.name,
            "weights_sha256": task.model.descriptor.sha256,
            "precision": use.precision,
            "attention": use.attention,
            "kernels": use.kernels,
        }

        # Knows nothing of the engine, which may be dropped for another model before this is written.
        def write() -> ShardDone:
            commit(task.target, keys, embedded.reasons, embedded.values, metadata)
            return ShardDone(use, figures, ready - start, self._figures())

        self._unwritten = [self._writer.submit(write)]
        progress.end()
        return self._unwritten[0]

    def _figures(self) -> ProcessFigures:
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return ProcessFigures(os.getpid(), self.registry.loads, self.registry.switches, peak)


def load_engine(
    model: PlannedModel, precision: str, device: torch.device, threads: int, tokens_per_pack: int | None
) -> Engine:
    """Read a model's weights and make its engine; without a token budget, that which suits the device."""
    start = time.monotonic()
    esm = Esm(weights.load(model.descriptor), device, precision=precision, attention=model.attention)

    def exact() -> Esm:
        # On a GPU, the weights in float32 are twice what is there already, and may be more than has room beside it.
        return Esm(weights.load(model.descriptor), device, resident=device.type == "cpu")

    engine = Engine(
        esm,
        tokens_per_pack=tokens_per_pack or auto_tokens(esm),
        threads=threads,
        exact=None if precision == "fp32" else exact,
    )
    log.info(
        "model %s on %s after %.1f s; %s, attention %s, kernels %s, %d tokens per pack, %d threads",
        model.name,
        device,
        time.monotonic() - start,
        precision,
        esm.attention,
        esm.kernels,
        engine.tokens_per_pack,
        threads,
    )
    return engine


class _Progress:
    """Tells once a second how far a shard is, and when it is computed."""

    def __init__(self, report: Report, task: EmbedShard) -> None:
        self._report = report
        self._now = ShardProgress(task.model.name, task.target)
        self._tell()

    def add(self, sequences: int, residues: int, flops: float) -> None:
        """Count a finished pack."""
        now = self._now
        self._now = replace(
            now, sequences=now.sequences + sequences, residues=now.residues + residues, cost=now.cost + flops
        )
        if time.monotonic() - self._told >= _INTERVAL:
            self._tell()

    def end(self) -> None:
        """The device is free."""
        self._now = replace(self._now, computed=True)
        self._tell()

    def _tell(self) -> None:
        self._report(self._now)
        self._told = time.monotonic()
