"""What goes wrong under the engine: memory and devices. No row may be missing, doubled or misplaced."""

import random
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from typing import Any

import numpy as np
import psutil
import pytest
import random_weights
import reference
import torch
from esmflow.architecture import Architecture
from esmflow.engine.budget import MOST_TOKENS, probe_tokens
from esmflow.engine.device import require_memory, weights_bytes
from esmflow.engine.engine import Engine
from esmflow.engine.task import Embedded, Task
from esmflow.errors import DeviceError
from esmflow.model import fair_esm, weights
from esmflow.model.fair_esm import FairEsmLayer
from esmflow.model.pack import Pack
from esmflow.model.parts import Tensors
from esmflow.model.pooling import Represented
from esmflow.model.trunk import Esm
from esmflow.representation import Output
from esmflow.treatment import WHOLE
from workflow import DEADLINE, ROOT

CPU = torch.device("cpu")
SHAPE = random_weights.SHAPES["8M"]
OUTPUT = Output(3, "mean")
#: As PyTorch's allocator and oneDNN say it.
NO_MEMORY = ["can't allocate memory: you tried to allocate 64 bytes", "could not create a primitive"]
SEQUENCES = ["".join(random.Random(n).choices("ACDEFGHIKLMNPQRSTVWY", k=5 + 7 * n)).encode() for n in range(30)]


class FaultyEsm(Esm):
    """A real model whose forward pass runs into trouble when `trouble` says so."""

    def __init__(self, path: Path, trouble: Callable[[Pack], Exception | None]) -> None:
        super().__init__(weights.read([path]), CPU)
        self.trouble = trouble

    def representations(self, pack: Pack, *arguments: Any) -> Iterator[tuple[int, torch.Tensor]]:
        if error := self.trouble(pack):
            raise error
        return super().representations(pack, *arguments)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    reference.tiny_esm2(tmp_path / "tiny.pt")
    return tmp_path / "tiny.pt"


def healthy(path: Path) -> Embedded:
    return Engine(Esm(weights.read([path]), CPU)).embed(SEQUENCES, [OUTPUT])


def assert_equal(found: Embedded, expected: Embedded, rows: Collection[int] = range(30)) -> None:
    for row in rows:
        assert found.reasons[row] is None
        assert np.allclose(found.values[OUTPUT][row], expected.values[OUTPUT][row], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("which", [1, 3, 5])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), *map(RuntimeError, NO_MEMORY)])
def test_a_pack_that_does_not_fit_is_split(tiny: Path, which: int, error: Exception) -> None:
    calls: list[bytes] = []
    pack_item = Pack.of([b"M"]).tokens.itemsize

    def trouble(pack: Pack) -> Exception | None:
        calls.append(pack.tokens.tobytes())
        return error if calls[-1] == (calls + [b""] * which)[which - 1] else None

    engine = Engine(FaultyEsm(tiny, trouble), tokens_per_pack=400)
    assert_equal(engine.embed(SEQUENCES, [OUTPUT]), healthy(tiny))
    assert engine.figures.splits == 1
    assert engine.figures.sequences == len(SEQUENCES)
    longest = max(map(len, SEQUENCES)) + 2
    begun = 2  # Two packs are in hand at a time.
    assert max(map(len, calls[which + begun :])) <= max(len(calls[which - 1]) // 2, longest * pack_item)


def test_a_sequence_that_never_fits_gets_a_reason_and_no_other_does(tiny: Path) -> None:
    engine = Engine(
        FaultyEsm(tiny, lambda pack: torch.OutOfMemoryError("out of memory") if len(pack.tokens) > 150 else None),
        tokens_per_pack=1000,
        threads=2,
    )
    found = engine.embed(SEQUENCES, [OUTPUT])
    fits = [row for row, sequence in enumerate(SEQUENCES) if len(sequence) + 2 <= 150]
    assert 0 < len(fits) < 30
    assert_equal(found, healthy(tiny), fits)
    assert all("out of memory" in (found.reasons[row] or "") for row in set(range(30)) - set(fits))


def test_packs_that_fit_only_one_at_a_time_lose_no_sequence_and_leave_the_budget_as_it_was(tiny: Path) -> None:
    limit, together = 600, Barrier(2)
    held: list[int] = []

    class Crowded(FaultyEsm):
        """Has memory for one pack at a time. The first two meet."""

        def representations(self, pack: Pack, *arguments: Any) -> Iterator[tuple[int, torch.Tensor]]:
            held.append(len(pack.tokens))
            try:
                if len(held) <= 2 and not together.broken:
                    with suppress(BrokenBarrierError):
                        together.wait(DEADLINE)
                    together.abort()
                    raise torch.OutOfMemoryError("CUDA out of memory")
                if sum(held) > limit:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                yield from super().representations(pack, *arguments)
            finally:
                held.remove(len(pack.tokens))

    engine = Engine(Crowded(tiny, lambda _: None), tokens_per_pack=500, threads=4)
    assert_equal(engine.embed(SEQUENCES, [OUTPUT]), healthy(tiny))
    assert engine.figures.splits == 0
    assert engine.tokens_per_pack == 500
    assert engine.figures.sequences == len(SEQUENCES)


def test_the_budget_that_a_shortage_made_small_grows_again(tiny: Path) -> None:
    memory = 150
    engine = Engine(
        FaultyEsm(tiny, lambda pack: torch.OutOfMemoryError() if len(pack.tokens) > memory else None),
        tokens_per_pack=1000,
    )
    engine.embed(SEQUENCES, [OUTPUT])
    assert engine.tokens_per_pack <= 150
    memory = 10_000
    for _ in range(4):
        assert_equal(engine.embed(SEQUENCES, [OUTPUT]), healthy(tiny))
    assert engine.tokens_per_pack == 1000


def test_results_on_a_device_are_copied_before_they_become_arrays() -> None:
    """Without a GPU, by a device whose tensors have nothing to copy, which PyTorch says of itself."""
    values = {OUTPUT: torch.empty(2, 3, device="meta")}
    shape = random_weights.esm2(3, 64, 4)
    with pytest.raises(NotImplementedError, match="copy out of meta tensor"):
        Represented(values, np.array([5, 7]), shape).get()


def test_results_are_apart_from_the_memory_that_they_came_in() -> None:
    shape, residues = random_weights.esm2(3, 64, 4), Output(3, "per_tok")
    tensors = {OUTPUT: torch.ones(2, 64), residues: torch.ones(12, 64)}
    task = Task(1, [b"MKTAY", b"MKTAYIA"], list(tensors), None, WHOLE, shape)
    task.take(np.arange(2), Represented(tensors, np.array([5, 7]), shape).get().values)
    for tensor in tensors.values():
        tensor.zero_()
    embedded = task.embedded()
    assert np.all(embedded.values[OUTPUT] == 1)
    assert [(array.shape, bool(np.all(array == 1))) for array in embedded.values[residues]] == [
        ((5, 64), True),
        ((7, 64), True),
    ]


def test_packs_are_made_in_this_process(tiny: Path) -> None:
    process = psutil.Process()
    before = process.children()
    engine = Engine(Esm(weights.read([tiny]), CPU), tokens_per_pack=300)
    engine.submit(SEQUENCES, [OUTPUT])
    engine.step()
    assert process.children() == before
    engine.close()


def test_what_has_too_little_memory_beside_other_packs_is_computed_in_float32_without_them(tiny: Path) -> None:
    """All is infinite in 16 bit, of which float32 has room for one sequence at a time, and none while a pack runs."""
    running: list[int] = []

    class Infinite(FaultyEsm):
        def representations(self, pack: Pack, *arguments: Any) -> Iterator[tuple[int, torch.Tensor]]:
            running.append(len(pack.tokens))
            for layer, x in super().representations(pack, *arguments):
                yield layer, x * torch.inf
            running.remove(len(pack.tokens))

    class Exact(FaultyEsm):
        def representations(self, pack: Pack, *arguments: Any) -> Iterator[tuple[int, torch.Tensor]]:
            running.append(len(pack.tokens))
            try:
                if len(running) > 1:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                yield from super().representations(pack, *arguments)
            finally:
                running.remove(len(pack.tokens))

    exact = Exact(tiny, lambda _: None)
    engine = Engine(Infinite(tiny, lambda _: None), tokens_per_pack=300, threads=2, exact=lambda: exact)
    assert_equal(engine.embed(SEQUENCES, [OUTPUT]), healthy(tiny))
    engine.close()


def test_packs_side_by_side_take_each_layers_weights_to_the_device_once(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    class Counted(FairEsmLayer):
        def __init__(self, tensors: Tensors, name: str, *arguments: Any, **options: Any) -> None:
            made.append(name)
            super().__init__(tensors, name, *arguments, **options)

    monkeypatch.setattr(fair_esm, "FairEsmLayer", Counted)
    apart = Engine(Esm(weights.read([tiny]), CPU, resident=False), tokens_per_pack=10_000, apart=True)
    outputs = [OUTPUT, Output(1, "per_tok"), Output(3, "contacts")]
    found = apart.embed(SEQUENCES, outputs)
    assert made == ["layers.0", "layers.1", "layers.2"]
    assert_equal(found, healthy(tiny))
    together = Engine(Esm(weights.read([tiny]), CPU)).embed(SEQUENCES, outputs)
    for output in outputs[1:]:
        for ours, theirs in zip(found.values[output], together.values[output], strict=True):
            assert np.allclose(ours, theirs, atol=1e-5)


def test_a_lost_device_is_an_error_with_its_cause(tiny: Path) -> None:
    engine = Engine(FaultyEsm(tiny, lambda pack: torch.AcceleratorError("CUDA error: unspecified launch failure", 719)))
    with pytest.raises(DeviceError, match="unspecified launch failure"):
        engine.embed(SEQUENCES, [OUTPUT])


def test_a_bug_is_not_taken_for_a_lost_device(tiny: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        Engine(FaultyEsm(tiny, lambda pack: RuntimeError("shapes do not match"))).embed(SEQUENCES, [OUTPUT])


def test_tickets_come_back_with_their_own_rows(tiny: Path) -> None:
    engine = Engine(Esm(weights.read([tiny]), CPU), tokens_per_pack=300, threads=2)
    expected = healthy(tiny)
    parts = {engine.submit(SEQUENCES[first : first + 7], [OUTPUT]): first for first in range(0, 30, 7)}
    finished = dict(engine.drain())
    assert set(finished) == set(parts)
    for ticket, first in parts.items():
        for place, vector in enumerate(finished[ticket].values[OUTPUT]):
            assert np.allclose(vector, expected.values[OUTPUT][first + place], rtol=1e-5, atol=1e-6)
    assert engine.step() == []
    engine.close()


def test_weights_that_do_not_fit_are_refused_with_both_figures() -> None:
    shape = Architecture("ESM-2", 48, 5120, 40, 20480, True, None, lm_head=True, contact_head=True)
    assert 14e9 * 2 < weights_bytes(shape, "fp16") < 16e9 * 2
    require_memory(shape, "fp16", CPU, 40 << 30)
    with pytest.raises(DeviceError, match=r"28\.\d GiB in fp16 and 24\.0 GiB are free"):
        require_memory(shape, "fp16", CPU, 24 << 30)


def test_the_probe_finds_what_fits() -> None:
    held = []

    def run(pack: Pack) -> None:
        held.append(50_000_000 + 30_000 * len(pack.tokens))

    tokens = probe_tokens(SHAPE, run, free=lambda: 1_000_000_000, peak=lambda: held[-1])
    assert 0.7e9 <= 50_000_000 + 30_000 * tokens <= 0.8e9
    assert probe_tokens(SHAPE, run, free=lambda: 60_000_000, peak=lambda: held[-1]) == 1024


def test_the_most_tokens_of_a_pack_are_those_that_the_documents_tell() -> None:
    assert probe_tokens(SHAPE, lambda _: None, free=lambda: 1 << 60, peak=lambda: 1) == MOST_TOKENS
    told = f"{MOST_TOKENS:,}"
    [key] = [
        line for line in (ROOT / "config" / "README.md").read_text().splitlines() if "workers.tokens_per_pack" in line
    ]
    assert f"what fits on a GPU, up to {told}" in key
    assert f"at most {told}" in (ROOT / "docs" / "gpu.md").read_text()
