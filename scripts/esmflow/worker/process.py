"""What a process of the worker holds: a device, its models, and the way of a shard through them."""

import logging
import os
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from esmflow.engine.device import auto_tokens, choose_device
from esmflow.engine.engine import Engine, Figures
from esmflow.engine.self_check import self_check
from esmflow.jobs import read_shard
from esmflow.model import weights
from esmflow.model.trunk import Esm
from esmflow.store import store
from esmflow.worker.messages import EmbedShard, Model, StartServer
from esmflow.worker.pool import Report
from esmflow.worker.registry import ModelRegistry

#: Seconds between two reports of progress.
_INTERVAL = 1.0

log = logging.getLogger(__name__)


class Server:
    """Embeds shards with the models of a registry.

    report: is told what shard is in hand, its sequences, residues and FLOPs that are done, and when it is computed.
    commit: writes a shard into the store.
    """

    def __init__(self, registry: ModelRegistry, report: Report, *, commit: Callable[..., None] = store.commit) -> None:
        self.registry = registry
        self._report = report
        self._commit = commit
        self._writer = ThreadPoolExecutor(1)
        self._unwritten: list[Future[dict[str, Any]]] = []

    @classmethod
    def start(cls, settings: StartServer, index: int, report: Report) -> "Server":
        """A server on the device of the process of that number. Raises DeviceError if there is no such device."""
        device = choose_device(settings.device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", index % torch.cuda.device_count())
            torch.cuda.set_device(device)

        def load(model: Model, precision: str) -> Engine:
            return load_engine(model, precision, device, settings.threads, settings.tokens_per_pack)

        return cls(ModelRegistry(device, load), report)

    def embed(self, shard: EmbedShard) -> Future[dict[str, Any]]:
        """Embed a shard and begin to commit it; when that is done, there are its figures and those of the process."""
        start = time.monotonic()
        progress = _Progress(self._report, shard)
        resident = self.registry.get(shard.model)
        engine, ready = resident.engine, time.monotonic()
        engine.figures = Figures()
        keys, sequences = read_shard(shard.file, shard.first, shard.stop)
        engine.submit(sequences, shard.outputs, shard.treatment, progress.add)
        [(_, embedded)] = engine.drain()
        figures = asdict(engine.figures)
        resident.check = check = resident.check or self_check(
            engine, sequences, shard.outputs, shard.treatment, embedded
        )
        metadata = {
            "model": shard.model.descriptor.name,
            "weights_sha256": shard.model.descriptor.sha256,
            "precision": engine.model.precision,
            "attention": engine.model.attention,
        }
        # One shard that is being written lies in memory beside the one in hand, and no more.
        wait(self._unwritten)
        seconds = time.monotonic() - ready

        def write() -> dict[str, Any]:
            self._commit(shard.target, keys, embedded.reasons, embedded.values, metadata)
            unit = 1 if sys.platform == "darwin" else 1024
            return {
                "seconds": seconds,
                "loading_seconds": ready - start,
                "figures": figures,
                "self_check": asdict(check),
                "model": {
                    "device": str(engine.model.device),
                    "precision": engine.model.precision,
                    "attention": engine.model.attention,
                    "tokens_per_pack": engine.tokens_per_pack,
                    "weights_bytes": resident.bytes,
                },
                "pid": os.getpid(),
                "process": {
                    "loads": self.registry.loads,
                    "switches": self.registry.switches,
                    "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
                },
            }

        self._unwritten = [self._writer.submit(write)]
        progress.end()
        return self._unwritten[0]


def load_engine(
    model: Model, precision: str, device: torch.device, threads: int, tokens_per_pack: int | None
) -> Engine:
    """Read a model's weights and make its engine; without a token budget, that which suits the device."""
    start = time.monotonic()
    parts = [Path(file) for file in model.descriptor.files]
    esm = Esm(weights.read(parts), device, precision=precision, attention=model.attention)

    def exact() -> Esm:
        return Esm(weights.read(parts), device)

    engine = Engine(
        esm,
        tokens_per_pack=tokens_per_pack or auto_tokens(esm),
        threads=threads,
        exact=None if precision == "fp32" else exact,
    )
    log.info(
        "model %s on %s after %.1f s; %s, attention %s, %d tokens per pack, %d threads",
        model.descriptor.name,
        device,
        time.monotonic() - start,
        precision,
        esm.attention,
        engine.tokens_per_pack,
        threads,
    )
    return engine


class _Progress:
    """Tells once a second how far a shard is, and when it is computed."""

    def __init__(self, report: Report, shard: EmbedShard) -> None:
        self._report = report
        self._done: dict[str, Any] = {"sequences": 0, "residues": 0, "cost": 0.0}
        self._about = {"model": shard.model.descriptor.name, "target": shard.target, "computed": False}
        self._tell()

    def add(self, sequences: int, residues: int, flops: float) -> None:
        """Count a finished pack."""
        self._done["sequences"] += sequences
        self._done["residues"] += residues
        self._done["cost"] += flops
        if time.monotonic() - self._told >= _INTERVAL:
            self._tell()

    def end(self) -> None:
        """The device is free."""
        self._about["computed"] = True
        self._tell()

    def _tell(self) -> None:
        self._report(self._about | self._done)
        self._told = time.monotonic()
