"""What a process of the worker holds: a device, its models, and the way of a shard through them."""

import logging
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from queue import SimpleQueue

import pyarrow as pa
import torch

from esmflow.engine.budget import auto_tokens
from esmflow.engine.device import relative_rate, usable_gpu
from esmflow.engine.engine import Engine
from esmflow.engine.figures import Figures
from esmflow.engine.self_check import self_check
from esmflow.engine.task import Embedded
from esmflow.model import weights
from esmflow.model.trunk import Esm
from esmflow.planned_model import PlannedModel
from esmflow.receipt import ModelUse
from esmflow.store.store import commit
from esmflow.worker.messages import EmbedShard, ProcessFigures, ShardDone, ShardProgress
from esmflow.worker.registry import ModelRegistry, Resident

#: Seconds between two reports of progress.
_INTERVAL = 1.0

Report = Callable[[ShardProgress], None]

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _InHand:
    """A shard on its way through the device."""

    task: EmbedShard
    progress: "_Progress"
    done: Future[ShardDone] = field(default_factory=Future)
    launched: Future[None] = field(default_factory=Future)
    """Done when the device has its last packs before it, so that those of the next shard may come behind them."""
    ticket: int = 0
    began: float = 0.0
    ready: float = 0.0
    """When its model was there."""
    keys: pa.Array | None = None
    sequences: Sequence[bytes] = ()

    def launch(self) -> None:
        """Let the next shard come."""
        if not self.launched.done():
            self.progress.end()
            self.launched.set_result(None)

    def fail(self, error: Exception) -> None:
        """Give it up."""
        for future in (self.launched, self.done):
            if not future.done():
                future.set_exception(error)


class Embedder:
    """Embeds shards with the models of a registry; the next one's packs follow on the device without a gap.

    One thread has the registry and its engines; it takes a shard, and goes on with those in hand pack by pack, until
    the next comes. Another commits. report: is told what is in hand, how far it is, and when the next may come.
    """

    def __init__(self, registry: ModelRegistry, report: Report) -> None:
        self.registry = registry
        self._report = report
        self._writer = ThreadPoolExecutor(1)
        self._unwritten: list[Future[None]] = []
        self._events: SimpleQueue[_InHand | None] = SimpleQueue()
        """Shards that are given, and None when a pack is done."""
        self._in_hand: list[_InHand] = []
        self._finished = 0.0
        """When the shard before was computed."""
        threading.Thread(target=self._drive, daemon=True).start()

    @classmethod
    def start(cls, report: Report, *, on_gpu: bool, threads: int, tokens_per_pack: int | None) -> "Embedder":
        """One on the GPU that this process sees, or on the CPU. Raises DeviceError if PyTorch cannot use the GPU."""
        device = usable_gpu() if on_gpu else torch.device("cpu")

        def load(model: PlannedModel, precision: str) -> Engine:
            return load_engine(model, precision, device, threads, tokens_per_pack)

        return cls(ModelRegistry(device, load), report)

    def embed(self, task: EmbedShard) -> Future[ShardDone]:
        """Begin to embed a shard; the future is done when it is committed.

        Returns when the device could begin with another.
        """
        shard = _InHand(task, _Progress(self._report, task))
        self._events.put(shard)
        shard.launched.result()
        return shard.done

    def _drive(self) -> None:
        while True:
            if shard := self._events.get():
                self._begin(shard)
            try:
                self._go_on()
            except Exception as error:
                self._fail(error)

    def _begin(self, shard: _InHand) -> None:
        task = shard.task
        try:
            if self._in_hand and self._in_hand[-1].task.model != task.model:
                resident = self.registry.get(self._in_hand[-1].task.model)
                while self._in_hand:
                    self._step(resident)
        except Exception as error:
            self._fail(error)
        shard.began = time.monotonic()
        try:
            engine = self.registry.get(task.model).engine
            shard.ready = time.monotonic()
            shard.keys, shard.sequences = task.read()
            outputs, treatment = task.shard.outputs, task.shard.treatment
            shard.ticket = engine.submit(shard.sequences, outputs, treatment, shard.progress.add)
        except Exception as error:
            shard.fail(error)
        else:
            self._in_hand.append(shard)

    def _go_on(self) -> None:
        """Go on with the shards in hand, which have one model, until the device has to be waited for."""
        if not self._in_hand:
            return
        resident = self.registry.get(self._in_hand[-1].task.model)
        while (result := resident.engine.begin()) and result.done():
            self._step(resident)
        # What the first shard is checked by needs the device for itself.
        if resident.check and not resident.engine.waiting:
            for shard in self._in_hand:
                shard.launch()
        if result:
            result.add_done_callback(lambda _: self._events.put(None))

    def _step(self, resident: Resident) -> None:
        for ticket, embedded in resident.engine.step():
            [shard] = [shard for shard in self._in_hand if shard.ticket == ticket]
            self._finish(shard, resident, embedded)

    def _finish(self, shard: _InHand, resident: Resident, embedded: Embedded) -> None:
        """Begin to commit what is computed."""
        engine, task = resident.engine, shard.task
        if resident.check is None:
            resident.check = self_check(engine, shard.sequences, task.shard.outputs, task.shard.treatment, embedded)
        now = time.monotonic()
        use = ModelUse(
            device=str(engine.model.device),
            precision=engine.model.precision,
            attention=engine.model.attention,
            tokens_per_pack=engine.tokens_per_pack,
            weights_bytes=resident.bytes,
            self_check=resident.check,
            flops=task.cost,
            computing_seconds=now - max(shard.ready, self._finished),
            kernels=engine.model.kernels,
        )
        self._finished = now
        figures, engine.figures = engine.figures, Figures()
        self._in_hand.remove(shard)
        # One shard that is being written lies in memory beside those on the device, and no more.
        wait(self._unwritten)
        self._unwritten = [self._writer.submit(self._write, shard, embedded, use, figures)]
        shard.launch()

    def _write(self, shard: _InHand, embedded: Embedded, use: ModelUse, figures: Figures) -> None:
        """Commit a shard. Knows nothing of the engine, which may be dropped for another model before this is done."""
        model = shard.task.model
        metadata = {
            "model": model.name,
            "weights_sha256": model.descriptor.sha256,
            "precision": use.precision,
            "attention": use.attention,
            "kernels": use.kernels,
        }
        try:
            commit(shard.task.target, shard.keys, embedded.reasons, embedded.values, metadata, model.spec.vectors)
        except Exception as error:
            shard.fail(error)
        else:
            shard.done.set_result(ShardDone(use, figures, shard.ready - shard.began, self._figures()))

    def _fail(self, error: Exception) -> None:
        """Drop the shards in hand, if there are any."""
        for shard in self._in_hand:
            shard.fail(error)
        if self._in_hand:
            self.registry.get(self._in_hand[0].task.model).engine.cancel()
        self._in_hand.clear()

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
    if device.type == "cpu" and precision != "fp32":
        rate = relative_rate(precision)
        advice = "; 'precision: fp32' is faster and more exact" if rate < 1 else ""
        log.info("this CPU computes products in %s at %.2g times the rate of float32%s", precision, rate, advice)
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
