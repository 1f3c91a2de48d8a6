"""The models that a process holds: loaded once, dropped when memory asks for it, never lost to a failure."""

import gc
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import reference
import torch
from esmflow.errors import DataError, DeviceError
from esmflow.planned_model import PlannedModel
from esmflow.representation import Output
from esmflow.worker.process import load_engine
from esmflow.worker.registry import ModelRegistry
from worker_jobs import planned_model
from workflow import FULL_SIZE

CPU = torch.device("cpu")
SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQ"


def model(path: Path, name: str = "tiny") -> PlannedModel:
    return planned_model(path, name, path.parent)


def registry(free: Callable[[ModelRegistry], int] = lambda registry: 10**12) -> ModelRegistry:
    """A registry on the CPU that sees as much free memory as `free` tells of its state."""
    made: list[ModelRegistry] = []

    def load(wanted: PlannedModel, precision: str):  # type: ignore[no-untyped-def]
        return load_engine(wanted, precision, CPU, 1, None)

    made.append(ModelRegistry(CPU, load, free=lambda _: free(made[0])))
    return made[0]


def one_at_a_time(held: ModelRegistry) -> int:
    return 0 if held.residents else 10**12


@pytest.fixture
def first(tmp_path: Path) -> Path:
    reference.tiny_esm2(tmp_path / "first.pt", seed=1)
    return tmp_path / "first.pt"


@pytest.fixture
def second(tmp_path: Path) -> Path:
    reference.tiny_esm2(tmp_path / "second.pt", seed=2)
    return tmp_path / "second.pt"


def assert_serves(held: ModelRegistry, wanted: PlannedModel, theirs: torch.nn.Module) -> None:
    """Embed with the model, and compare with fair-esm."""
    output = Output(3, "mean")
    [found] = held.get(wanted).engine.embed([SEQUENCE.encode()], [output]).values[output]
    expected = reference.represent(theirs, SEQUENCE)[3, "mean"]
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


def test_the_same_weights_are_loaded_once_whatever_their_name(first: Path) -> None:
    held = registry()
    resident = held.get(model(first, "one"))
    assert held.get(model(first, "one")) is resident
    assert held.get(model(first, "another")) is resident
    assert (held.loads, held.switches) == (1, 0)


def test_what_is_loaded_is_known(first: Path) -> None:
    held = registry()
    held.get(model(first))
    [resident] = held.residents.values()
    assert resident.model.descriptor.sha256 == model(first).descriptor.sha256
    assert resident.engine.model.device == CPU
    assert resident.engine.model.precision == "fp32"
    assert resident.engine.model.attention == "sdpa"
    assert resident.engine.model.kernels == "plain"
    shape = resident.model.architecture
    assert resident.bytes >= 4 * shape.layers * 12 * shape.embed_dim**2


def test_models_stay_while_they_fit(first: Path, second: Path, tmp_path: Path) -> None:
    held = registry()
    one, two = model(first), model(second)
    for wanted in (one, two, one, two):
        held.get(wanted)
    assert (held.loads, held.switches) == (2, 3)
    assert [resident.model for resident in held.residents.values()] == [one, two]
    for wanted, seed in ((one, 1), (two, 2)):
        assert_serves(held, wanted, reference.tiny_esm2(tmp_path / "again.pt", seed=seed))


def test_the_least_recently_used_goes_first(first: Path, second: Path, tmp_path: Path) -> None:
    reference.tiny_esm2(tmp_path / "third.pt", seed=3)
    one, two, three = model(first), model(second), model(tmp_path / "third.pt")
    held = registry(lambda held: 10**12 if len(held.residents) < 2 else 0)
    for wanted in (one, two, one, three):
        held.get(wanted)
    assert [resident.model for resident in held.residents.values()] == [one, three]


@pytest.mark.parametrize("free", [one_at_a_time, lambda held: 10**12])
def test_a_switch_to_a_corrupt_checkpoint_leaves_the_old_model_serving(
    first: Path, second: Path, free: Callable[[ModelRegistry], int]
) -> None:
    held = registry(free)
    old, new = model(first), model(second)
    content = second.read_bytes()
    stamp = second.stat()
    second.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    os.utime(second, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    held.get(old)
    with pytest.raises(DataError, match=r"second\.pt"):
        held.get(new)
    assert_serves(held, old, reference.tiny_esm2(first, seed=1))


def test_absent_weights_are_named_and_nothing_is_dropped_for_them(first: Path, second: Path) -> None:
    held = registry(one_at_a_time)
    old, new = model(first), model(second)
    resident = held.get(old)
    second.unlink()
    with pytest.raises(DataError, match=r"second\.pt: weights are missing"):
        held.get(new)
    assert held.get(old) is resident


def test_a_model_that_cannot_fit_is_refused_with_the_figures(first: Path) -> None:
    with pytest.raises(DeviceError, match=r"the weights need .* GiB in fp32 and 0.0 GiB are free"):
        registry(lambda held: 0).get(model(first))


def test_memory_does_not_grow_with_switches(tmp_path: Path) -> None:
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    for seed, path in enumerate(paths):
        reference.tiny_esm2(path, layers=2, embed_dim=512, heads=8, seed=seed)
    models = [model(path) for path in paths]
    gc.collect()
    held = registry(one_at_a_time)
    resident = []
    switches = 30 if FULL_SIZE else 10
    for number in range(switches):
        held.get(models[number % 2]).engine.embed([SEQUENCE.encode()], [Output(2, "mean")])
        resident.append(psutil.Process().memory_info().rss)
    assert held.loads == switches
    assert resident[-1] <= 1.05 * resident[1]
