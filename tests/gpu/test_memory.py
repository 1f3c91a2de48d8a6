"""The device's memory, its streams, and its loss."""

import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import random_weights
import torch
from esmflow.engine.budget import MOST_TOKENS, auto_tokens
from esmflow.engine.device import free_memory, require_memory
from esmflow.engine.engine import Engine
from esmflow.errors import DeviceError
from esmflow.model.pack import Pack
from esmflow.model.pooling import represent
from esmflow.model.trunk import Esm
from esmflow.representation import VECTORS, Output

SHAPE = random_weights.shallow(random_weights.SHAPES["650M"], 2)
MEAN = Output(2, "mean")
GIB = 1 << 30
#: What the libraries keep for themselves: workspaces of cuBLAS, one for each stream.
WORKSPACES = 128 << 20


@pytest.fixture(scope="module")
def model(cuda: torch.device) -> Esm:
    return Esm(random_weights.checkpoint(SHAPE, cuda), cuda, precision="fp16")


@pytest.fixture
def three_gib(model: Esm) -> Iterator[None]:
    """Leave so much of the device's memory."""
    gc.collect()
    torch.cuda.empty_cache()
    excess = free_memory(model.device) - 3 * GIB
    if excess < 0:
        pytest.skip("less than 3 GiB are free on the device")
    ballast = torch.empty(excess, dtype=torch.uint8, device=model.device)
    yield
    del ballast
    torch.cuda.empty_cache()


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours @ theirs >= 0.99999 * np.linalg.norm(ours) * np.linalg.norm(theirs)


def test_results_copied_while_the_device_goes_on_are_those_of_their_pack(model: Esm) -> None:
    sequences = random_weights.proteins(random_weights.uniprot_like_lengths(300))
    outputs = [*(Output(2, name) for name in VECTORS), Output(1, "per_tok")]
    engine = Engine(model, tokens_per_pack=1500)
    found = engine.embed(sequences, outputs)
    engine.close()
    assert engine.figures.packs > 50
    for row, sequence in enumerate(sequences):
        alone = represent(model, [Pack.of([sequence])], outputs).get().values
        for output in outputs:
            assert np.allclose(found.values[output][row], alone[output][0], atol=0.05), (output, row)


def test_a_pack_is_launched_without_waiting_for_the_device(model: Esm) -> None:
    stream = torch.cuda.Stream(model.device)
    outputs = [Output(layer, name) for layer in (0, 2) for name in (*VECTORS, "per_tok")]
    pack = Pack.of(random_weights.proteins([300, 200, 100]))
    represent(model, [pack], outputs, stream).get()
    torch.cuda.set_sync_debug_mode("error")
    try:
        launched = represent(model, [pack], outputs, stream)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert launched.get().finite.all()


def test_packs_of_the_probed_size_fit(model: Esm, three_gib: None) -> None:
    tokens = auto_tokens(model)
    assert 1024 < tokens < MOST_TOKENS
    sequences = random_weights.proteins([510] * (2 * tokens // 512))
    engine = Engine(model, tokens_per_pack=tokens)
    found = engine.embed(sequences, [MEAN])
    engine.close()
    assert found.reasons == [None] * len(sequences)
    assert engine.figures.splits == 0


def test_a_budget_beyond_the_memory_is_split_until_it_fits(model: Esm, three_gib: None) -> None:
    sequences = random_weights.proteins([500] * 800)
    engine = Engine(model, tokens_per_pack=400_000)
    found = engine.embed(sequences, [MEAN])
    engine.close()
    assert engine.figures.splits > 0
    assert engine.figures.sequences == len(sequences)
    assert found.reasons == [None] * len(sequences)
    small = Engine(model, tokens_per_pack=8192)
    assert_same(found.values[MEAN], small.embed(sequences, [MEAN]).values[MEAN])
    small.close()


def test_a_sequence_beyond_the_memory_gets_a_reason_and_the_others_their_vectors(model: Esm, three_gib: None) -> None:
    short = random_weights.proteins([400] * 20)
    [giant] = random_weights.proteins([600_000])
    engine = Engine(model, tokens_per_pack=8192)
    found = engine.embed([*short, giant], [MEAN])
    assert found.reasons[:-1] == [None] * len(short)
    assert "out of memory" in (found.reasons[-1] or "")
    again = engine.embed(short, [MEAN])
    engine.close()
    assert_same(found.values[MEAN][:-1], again.values[MEAN])


def test_what_an_engine_held_is_free_when_it_is_gone(cuda: torch.device) -> None:
    gc.collect()
    before = torch.cuda.memory_allocated(cuda)
    model = Esm(random_weights.checkpoint(SHAPE, cuda), cuda, precision="bf16")
    engine = Engine(model, tokens_per_pack=20_000)
    held = torch.cuda.memory_allocated(cuda)
    engine.embed(random_weights.proteins([500] * 100), [MEAN])
    assert torch.cuda.memory_allocated(cuda) <= held + WORKSPACES
    engine.close()
    del engine, model
    gc.collect()
    assert torch.cuda.memory_allocated(cuda) <= before + WORKSPACES


def test_weights_beyond_the_memory_are_refused_before_they_are_loaded(cuda: torch.device) -> None:
    huge = random_weights.esm2(4000, 5120, 40)
    with pytest.raises(DeviceError, match="GiB are free"):
        require_memory(huge, "fp16", cuda, free_memory(cuda))


LOST = """
import torch, random_weights
from esmflow.engine.engine import Engine
from esmflow.errors import DeviceError
from esmflow.model.trunk import Esm
from esmflow.representation import Output
device = torch.device("cuda")

class Faulty(Esm):
    def representations(self, pack, *arguments):
        pack.tokens[3] = 200  # no such letter: an assertion on the device ends this process's context
        return super().representations(pack, *arguments)

model = Faulty(random_weights.checkpoint(random_weights.esm2(1, 64, 4), device), device, precision="fp16")
engine = Engine(model)
try:
    engine.embed([b"MKTAYIAK"] * 5, [Output(1, "mean")])
except DeviceError as error:
    print("DeviceError:", error)
"""


def test_a_lost_device_is_one_line(cuda: torch.device) -> None:
    """In a process of its own, whose context alone is lost."""
    tests = Path(__file__).parents[1]
    code = f"import sys; sys.path[:0] = [{str(tests)!r}, {str(tests.parent / 'scripts')!r}]\n{LOST}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert "DeviceError: cuda: lost" in result.stdout, result.stderr[-2000:]
