"""What a process of the worker does: the way of a shard through it."""

import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from esmflow.engine.engine import Engine
from esmflow.errors import DeviceLostError, WriteError
from esmflow.job import Job
from esmflow.model import weights
from esmflow.model.layouts import Checkpoint
from esmflow.model.pack import Pack
from esmflow.model.trunk import Esm
from esmflow.planned_model import PlannedModel
from esmflow.store.store import commit
from esmflow.worker import process
from esmflow.worker.messages import EmbedShard, ShardProgress
from esmflow.worker.process import Embedder, load_engine
from esmflow.worker.registry import ModelRegistry
from worker_jobs import make_job
from workflow import DEADLINE, wait_until

CPU = torch.device("cpu")


@pytest.fixture
def shards(tmp_path: Path) -> list[EmbedShard]:
    """Three shards of a tiny model."""
    reference.tiny_esm2(tmp_path / "tiny.pt")
    job = Job.load(make_job(tmp_path / "job", {"tiny": tmp_path / "tiny.pt"}, 3))
    model = job.models["tiny"]
    return [EmbedShard(model, s, 0, s.sequences, tmp_path / f"{s.name}.parquet") for s in job.shards]


def registry() -> ModelRegistry:
    return ModelRegistry(CPU, lambda model, precision: load_engine(model, precision, CPU, 1, None))


@pytest.fixture
def go(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Nothing is written before this is set."""
    event = threading.Event()

    def held_up(*content: Any) -> None:
        assert event.wait(DEADLINE)
        commit(*content)

    monkeypatch.setattr(process, "commit", held_up)
    yield event
    event.set()


def test_a_shard_is_computed_while_the_one_before_is_written(shards: list[EmbedShard], go: threading.Event) -> None:
    reports: list[ShardProgress] = []
    embedder = Embedder(registry(), reports.append)
    first = embedder.embed(shards[0])
    assert reports[-1].target == shards[0].target
    assert reports[-1].computed
    with ThreadPoolExecutor(1) as thread:
        second = thread.submit(embedder.embed, shards[1])
        wait_until(lambda: reports[-1].target == shards[1].target)
        assert not first.done()
        assert not shards[0].target.exists()
        go.set()
        assert second.result(DEADLINE).result(DEADLINE).use.self_check.sequences == 1
    assert first.done()
    assert shards[0].target.exists()
    assert shards[1].target.exists()


def test_a_model_that_is_dropped_while_its_shard_is_written_leaves_the_memory(
    shards: list[EmbedShard], go: threading.Event
) -> None:
    models = registry()
    embedder = Embedder(models, lambda report: None)
    written = embedder.embed(shards[0])
    [resident] = models.residents.values()
    engine, model = weakref.ref(resident.engine), weakref.ref(resident.engine.model)
    del resident
    models.drop()
    assert engine() is None
    assert model() is None
    assert not written.done()
    go.set()
    assert written.result(DEADLINE).use.device == "cpu"


def test_on_a_gpu_the_model_in_float32_is_not_there_as_a_whole(
    shards: list[EmbedShard], monkeypatch: pytest.MonkeyPatch
) -> None:
    resident: list[bool] = []

    class OnCpu(Esm):
        """Computes on the CPU whatever it is told."""

        def __init__(self, checkpoint: Checkpoint, device: torch.device, **options: Any) -> None:
            resident.append(options.get("resident", True))
            super().__init__(checkpoint, CPU, **options)

    monkeypatch.setattr(process, "Esm", OnCpu)
    load_engine(shards[0].model, "bf16", torch.device("cuda"), 1, 1000).exact()
    assert resident == [True, False]


def test_a_shard_that_cannot_be_written_fails_and_no_other(
    shards: list[EmbedShard], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(target: Path, *content: Any) -> None:
        if target == shards[1].target:
            raise WriteError("the disk is full")
        commit(target, *content)

    monkeypatch.setattr(process, "commit", full)
    embedder = Embedder(registry(), lambda report: None)
    first, second, third = (embedder.embed(shard) for shard in shards)
    with pytest.raises(WriteError, match="full"):
        second.result(DEADLINE)
    assert first.result(DEADLINE).figures.sequences == third.result(DEADLINE).figures.sequences == 6
    assert [shard.target.exists() for shard in shards] == [True, False, True]


def test_the_next_shard_is_on_the_device_before_the_last_pack_of_this_one_is_done(shards: list[EmbedShard]) -> None:
    second_begun = threading.Event()
    hold = threading.Event()

    class Watched(Esm):
        """Once told so, holds a shard's last pack until the next shard's first has begun."""

        def representations(self, pack: Pack, *arguments: Any) -> Iterator[tuple[int, torch.Tensor]]:
            if hold.is_set():
                if held:
                    second_begun.set()
                else:
                    held.append(pack)
                    assert second_begun.wait(DEADLINE)
            return super().representations(pack, *arguments)

    held: list[Pack] = []

    def load(model: PlannedModel, precision: str) -> Engine:
        return Engine(Watched(weights.load(model.descriptor), CPU), threads=2)

    embedder = Embedder(ModelRegistry(CPU, load), lambda report: None)
    embedder.embed(shards[0]).result(DEADLINE)
    hold.set()
    results = [embedder.embed(shard).result for shard in shards[1:]]
    for result in results:
        assert result(DEADLINE).figures.sequences > 0
    assert second_begun.is_set()


def test_a_device_that_is_lost_takes_with_it_all_that_is_in_hand(shards: list[EmbedShard]) -> None:
    lose = threading.Event()

    class Lost(Esm):
        def representations(self, pack: Pack, *arguments: Any) -> Iterator[tuple[int, torch.Tensor]]:
            if lose.is_set():
                raise torch.AcceleratorError("CUDA error: unspecified launch failure", 719)
            return super().representations(pack, *arguments)

    def load(model: PlannedModel, precision: str) -> Engine:
        return Engine(Lost(weights.load(model.descriptor), CPU))

    embedder = Embedder(ModelRegistry(CPU, load), lambda report: None)
    embedder.embed(shards[0]).result(DEADLINE)
    lose.set()
    with pytest.raises(DeviceLostError, match="unspecified launch failure"):
        embedder.embed(shards[1]).result(DEADLINE)
    lose.clear()
    assert embedder.embed(shards[2]).result(DEADLINE).figures.sequences == 6
