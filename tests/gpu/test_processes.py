"""Processes and models on GPUs: each process has a device of its own, and what a model took is free after it."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import random_weights
import torch
from esmflow.engine.device import free_memory
from esmflow.engine.engine import Engine
from esmflow.model.trunk import Esm
from esmflow.planned_model import Descriptor, ModelSpec, PlannedModel
from esmflow.representation import Output
from esmflow.worker.gpus import gpu_figures, visible_gpus
from esmflow.worker.pool import WorkerPool
from esmflow.worker.process import Embedder
from esmflow.worker.registry import ModelRegistry
from esmflow.worker.start import Start

SHAPE = random_weights.shallow(random_weights.SHAPES["650M"], 8)
MEAN = Output(8, "mean")
MIB = 1 << 20


@dataclass(frozen=True)
class TellDevice:
    """Tell the device of a process, which is kept busy for a while so that the others get their turn."""

    seconds: float

    def run(self, embedder: Embedder) -> str:
        assert str(embedder.registry.device) == "cuda:0"
        assert torch.cuda.device_count() == 1
        torch.ones(1, device=embedder.registry.device)
        time.sleep(self.seconds)
        return os.environ["CUDA_VISIBLE_DEVICES"]


def test_each_process_has_a_gpu_of_its_own(cuda: torch.device) -> None:
    gpus = tuple(visible_gpus())
    assert len(gpus) == torch.cuda.device_count()
    with WorkerPool(Start(gpus, 1, None), len(gpus)) as pool:
        devices = [pool.submit(TellDevice(2.0)) for _ in gpus]
        assert {future.result(120) for future in devices} == set(gpus)


def test_the_driver_tells_of_every_visible_gpu(cuda: torch.device) -> None:
    figures = gpu_figures(visible_gpus())
    assert len(figures) == torch.cuda.device_count()
    assert all(figure.memory_bytes > 0 and 0 <= figure.utilisation <= 1 for figure in figures)


@pytest.fixture
def models(tmp_path: Path) -> list[PlannedModel]:
    """Two names for weights that the loader below makes up; the files only have to be there."""
    made = []
    for name in ("one", "two"):
        (tmp_path / name).touch()
        stat = (tmp_path / name).stat()
        stamp = [[stat.st_size, stat.st_mtime_ns]]
        spec = ModelSpec(name, (-1,), ("mean",), "window", 1022, 256, "fp16")
        made.append(PlannedModel(spec, Descriptor(name, [str(tmp_path / name)], stamp, name * 20, SHAPE)))
    return made


def test_switching_frees_the_memory_of_the_model_before(cuda: torch.device, models: list[PlannedModel]) -> None:
    def load(model: PlannedModel, precision: str) -> Engine:
        return Engine(Esm(random_weights.checkpoint(SHAPE, cuda), cuda, precision=precision), tokens_per_pack=4096)

    def room_for_one(device: torch.device) -> int:
        return 0 if held.residents else free_memory(device)

    held = ModelRegistry(cuda, load, free=room_for_one)
    free = []
    for number in range(10):
        held.get(models[number % 2]).engine.embed([b"MKTAYIAKQRQISFVKSHFSRQ" * 20] * 50, [MEAN])
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free.append(free_memory(cuda))
    assert held.loads == 10
    assert min(free[2:]) >= free[1] - 64 * MIB
    taken = free_memory(cuda)
    held.drop()
    assert free_memory(cuda) - taken >= 8 * 12 * SHAPE.embed_dim**2 * 2
