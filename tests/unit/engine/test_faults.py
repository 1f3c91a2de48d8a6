"""What goes wrong under the engine: memory, devices and processes. No row may be missing, doubled or misplaced."""

import random
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import reference
import torch
from esmflow.architecture import Architecture
from esmflow.engine.budget import probe_tokens
from esmflow.engine.device import require_memory, weights_bytes
from esmflow.engine.engine import Embedded, Engine
from esmflow.engine.packing import ProcessLoader
from esmflow.errors import DeviceError
from esmflow.model import weights
from esmflow.model.pack import Pack
from esmflow.model.trunk import Esm
from esmflow.representation import Output

CPU = torch.device("cpu")
OUTPUT = Output(3, "mean")
SEQUENCES = ["".join(random.Random(n).choices("ACDEFGHIKLMNPQRSTVWY", k=5 + 7 * n)).encode() for n in range(30)]


class FaultyEsm(Esm):
    """A real model whose forward pass runs into trouble when `trouble` says so."""

    def __init__(self, path: Path, trouble: Callable[[Pack], Exception | None]) -> None:
        super().__init__(weights.read([path]), CPU)
        self.trouble = trouble

    def representations(
        self, pack: Pack, layers: Collection[int], observe: Callable[[int, torch.Tensor], None] | None = None
    ) -> Iterator[tuple[int, torch.Tensor]]:
        if error := self.trouble(pack):
            raise error
        return super().representations(pack, layers, observe)


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
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_a_pack_that_does_not_fit_is_split(tiny: Path, which: int, error: Exception) -> None:
    calls: list[int] = []

    def trouble(pack: Pack) -> Exception | None:
        calls.append(len(pack.tokens))
        return error if len(calls) == which else None

    engine = Engine(FaultyEsm(tiny, trouble), tokens_per_pack=400)
    assert_equal(engine.embed(SEQUENCES, [OUTPUT]), healthy(tiny))
    assert engine.figures.splits == 1
    assert engine.figures.sequences == len(SEQUENCES)
    longest = max(map(len, SEQUENCES)) + 2
    assert max(calls[which + 1 :]) <= max(calls[which - 1] // 2, longest)


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


def test_a_lost_device_is_an_error_with_its_cause(tiny: Path) -> None:
    engine = Engine(FaultyEsm(tiny, lambda pack: torch.AcceleratorError("CUDA error: unspecified launch failure", 719)))
    with pytest.raises(DeviceError, match="unspecified launch failure"):
        engine.embed(SEQUENCES, [OUTPUT])


def test_a_bug_is_not_taken_for_a_lost_device(tiny: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        Engine(FaultyEsm(tiny, lambda pack: RuntimeError("shapes do not match"))).embed(SEQUENCES, [OUTPUT])


def test_packs_made_in_processes_are_the_same(tiny: Path) -> None:
    engine = Engine(Esm(weights.read([tiny]), CPU), tokens_per_pack=300, loader=ProcessLoader(2))
    assert_equal(engine.embed(SEQUENCES, [OUTPUT]), healthy(tiny))
    engine.close()
    # The tracker of multiprocessing's own resources stays.
    assert all("resource_tracker" in " ".join(child.cmdline()) for child in psutil.Process().children())


def test_a_killed_loader_process_is_an_error_never_a_short_result(tiny: Path) -> None:
    def trouble(pack: Pack) -> None:
        for child in psutil.Process().children(recursive=True):
            # A pack that was made before the kill is computed, too: by then the process may have ended.
            with suppress(psutil.NoSuchProcess):
                if "resource_tracker" not in " ".join(child.cmdline()):
                    child.kill()

    engine = Engine(FaultyEsm(tiny, trouble), tokens_per_pack=200, loader=ProcessLoader(1))
    with pytest.raises(DeviceError, match="process"):
        engine.embed(SEQUENCES, [OUTPUT])
    engine.close()


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
    shape = Architecture("ESM-2", 6, 320, 20, 1280, True, None, lm_head=True, contact_head=True)
    held = []

    def run(pack: Pack) -> None:
        held.append(50_000_000 + 30_000 * len(pack.tokens))

    tokens = probe_tokens(shape, run, free=lambda: 1_000_000_000, peak=lambda: held[-1])
    assert 0.7e9 <= 50_000_000 + 30_000 * tokens <= 0.8e9
    assert probe_tokens(shape, run, free=lambda: 60_000_000, peak=lambda: held[-1]) == 1024
