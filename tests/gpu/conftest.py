"""Fixtures of the tests on a GPU: a device, and models of official shapes with random weights."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import psutil
import pytest
import random_weights
import torch
from esmflow.engine.device import free_memory
from esmflow.engine.engine import Engine
from esmflow.model.trunk import Esm
from esmflow.model.weights import Checkpoint
from esmflow.representation import VECTORS, Output

SEQUENCES = [b"M", b"XBZUO", *random_weights.proteins([40, 150, 300])]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: what can be run without a GPU")
    parser.addoption("--shapes", default="650M,3B,ESMC-600M", help="the models of those sizes")
    parser.addoption("--depth", type=int, default=1000, help="use so many layers of each shape at most")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "known" in metafunc.fixturenames:
        shapes = metafunc.config.getoption("--shapes").split(",")
        metafunc.parametrize("known", shapes, indirect=True, scope="module")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    name = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine; --device cpu --shapes 8M runs what can be run without one")
    return torch.device(name)


@pytest.fixture(scope="session")
def cuda(device: torch.device) -> torch.device:
    if device.type != "cuda":
        pytest.skip("needs a CUDA device")
    return torch.device("cuda", torch.cuda.current_device())


@dataclass(frozen=True)
class Known:
    """Random weights on the device, and what esmflow's float32 on the CPU (equal to fair-esm's) makes of SEQUENCES."""

    checkpoint: Checkpoint
    outputs: list[Output]
    expected: dict[Output, list[np.ndarray]]


@pytest.fixture(scope="module")
def known(request: pytest.FixtureRequest, device: torch.device) -> Iterator[Known]:
    shape = random_weights.SHAPES[request.param]
    # In float32: the checkpoint and a model of it on the device, two of the latter on the CPU (oneDNN's layout).
    bytes_per_layer = 4 * shape.layer_numbers
    fit = min(free_memory(device), psutil.virtual_memory().available) * 0.8 / (3 * bytes_per_layer)
    shape = random_weights.shallow(shape, min(request.config.getoption("--depth"), int(fit)))
    print(f"\n{request.param}: {shape.layers} layers of {random_weights.SHAPES[request.param].layers}")
    checkpoint = random_weights.checkpoint(shape, device)
    layers = sorted({0, 1, shape.layers // 2, shape.layers})
    outputs = [Output(layer, name) for layer in layers for name in VECTORS]
    engine = Engine(Esm(checkpoint, torch.device("cpu")), threads=psutil.cpu_count(logical=False) or 1)
    expected = engine.embed(SEQUENCES, outputs)
    engine.close()
    assert expected.reasons == [None] * len(SEQUENCES)
    yield Known(checkpoint, outputs, expected.values)
    del checkpoint, engine
    if device.type == "cuda":
        torch.cuda.empty_cache()
