"""The engine's parts: packs, pooling, devices, and values that are not finite."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from esmflow.engine.device import is_lost, usable_gpu
from esmflow.engine.engine import Engine
from esmflow.engine.packing import plan_packs
from esmflow.errors import DeviceError
from esmflow.model import weights
from esmflow.model.pack import Pack
from esmflow.model.pooling import PackedLayer
from esmflow.model.trunk import Esm
from esmflow.representation import REPRESENTATIONS, Output
from esmflow.treatment import Treatment
from hypothesis import given
from hypothesis import strategies as st

CPU = torch.device("cpu")
PLAIN = [b"MKTAYIAKQRQISFVKSHFSRQ", b"MKV", b"AAAA", b"CDEF", b"M"]
WITH_W = [b"W", b"MKWV", b"AAAW", b"WWWWWWWW"]


def lengths_like_uniprot(count: int, seed: int) -> np.ndarray:
    """Log-normal lengths with UniProt's median near 290 and its long tail, cut at 1,022 residues, plus BOS and EOS."""
    drawn = np.random.default_rng(seed).lognormal(np.log(290), 0.7, count).astype(np.int64)
    return np.clip(drawn, 10, 1022) + 2


def engine(path: Path, *, threads: int = 1, tokens_per_pack: int = 2048) -> Engine:
    model = Esm(weights.read(weights.weight_files(path)), CPU)
    return Engine(model, threads=threads, tokens_per_pack=tokens_per_pack)


def spoilt_engine(path: Path, change: Callable[[dict[str, torch.Tensor]], None], **options: int) -> Engine:
    """An engine whose model has some of its weights changed after they were read: a file that holds NaN is refused."""
    checkpoint = weights.read([path])
    tensors = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
    change(tensors)
    return Engine(Esm(replace(checkpoint, tensors=tensors), torch.device("cpu")), **options)


def pack(*residues: int) -> Pack:
    """A pack of sequences of so many residues."""
    return Pack.of([b"A" * length for length in residues])


def outputs(*layers: int) -> list[Output]:
    return [Output(layer, name) for layer in layers for name in reference.REPRESENTATIONS]


@given(tokens=st.lists(st.integers(3, 60), max_size=80), budget=st.integers(1, 100))
def test_packs_hold_every_row_once_and_keep_to_the_budget(tokens: list[int], budget: int) -> None:
    lengths = np.array(tokens, dtype=np.int64)
    packs = plan_packs(lengths, budget)
    assert sorted(row for rows in packs for row in rows.tolist()) == list(range(len(tokens)))
    for rows in packs:
        assert lengths[rows].sum() <= budget or len(rows) == 1
        assert (np.diff(lengths[rows]) <= 0).all()


@given(tokens=st.lists(st.integers(3, 60), min_size=2, max_size=80), budget=st.integers(60, 300))
def test_no_two_packs_would_fit_into_one(tokens: list[int], budget: int) -> None:
    sums = sorted(int(np.array(tokens)[rows].sum()) for rows in plan_packs(np.array(tokens), budget))
    assert len(sums) < 2 or sums[0] + sums[1] > budget


def test_a_sequence_longer_than_the_budget_has_a_pack_of_its_own() -> None:
    packs = plan_packs(np.array([5, 1000, 5, 100]), 100)
    assert sorted(sorted(rows.tolist()) for rows in packs) == [[0, 2], [1], [3]]


def test_no_sequences_make_no_packs() -> None:
    assert plan_packs(np.array([], dtype=np.int64), 100) == []


@pytest.mark.parametrize("budget", [4096, 16384, 32768])
@pytest.mark.parametrize("seed", [1, 2])
def test_packs_of_uniprot_like_lengths_are_full_but_for_the_last(budget: int, seed: int) -> None:
    tokens = lengths_like_uniprot(5000, seed)
    sums = sorted(int(tokens[rows].sum()) for rows in plan_packs(tokens, budget))
    assert sum(sums) == tokens.sum()
    assert sum(sums[1:]) / (budget * (len(sums) - 1)) >= 0.97


def test_plans_are_the_same_for_the_same_lengths() -> None:
    tokens = lengths_like_uniprot(500, 3)
    first, second = plan_packs(tokens, 2048), plan_packs(tokens.copy(), 2048)
    assert [rows.tolist() for rows in first] == [rows.tolist() for rows in second]


def pool(x: torch.Tensor, packed: Pack, names: Sequence[str]) -> dict[str, torch.Tensor]:
    layer = PackedLayer(x, packed)
    return {name: REPRESENTATIONS[name].take(layer) for name in names}


@pytest.mark.parametrize("lengths", [[1], [1, 1, 1], [5, 1, 30], [300, 2, 2, 41, 1, 1022]])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_pool_equals_loops_over_the_residues(lengths: list[int], offset: float) -> None:
    ends = np.cumsum([length + 2 for length in lengths])
    x = (np.random.default_rng(7).standard_normal((ends[-1], 12)) + offset).astype(np.float32)
    starts = [0, *ends[:-1].tolist()]
    found = pool(torch.from_numpy(x), pack(*lengths), reference.REPRESENTATIONS)
    assert set(found) == {"mean", "bos", "max", "std"}
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        residues = x[start + 1 : end - 1].astype(np.float64)
        np.testing.assert_allclose(found["mean"][row], residues.mean(axis=0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found["std"][row], residues.std(axis=0), rtol=1e-4, atol=1e-5 * max(offset, 1))
        np.testing.assert_array_equal(found["max"][row], residues.max(axis=0).astype(np.float32))
        np.testing.assert_array_equal(found["bos"][row], x[start])


@pytest.mark.parametrize("name", reference.REPRESENTATIONS)
def test_bos_and_eos_take_no_part_in_what_is_pooled_over_residues(name: str) -> None:
    x = torch.ones(9, 4)
    x[[0, 3, 4, 8]] = torch.nan
    pooled = pool(x, pack(2, 3), [name])
    assert torch.isnan(pooled[name]).all() == torch.isnan(pooled[name]).any() == (name == "bos")


@pytest.mark.parametrize("names", [["mean"], ["max"], ["bos"], ["std"], ["bos", "max"]])
def test_pool_gives_what_is_asked_whatever_else_is_asked(names: list[str]) -> None:
    x, packed = torch.randn(20, 6), pack(1, 7, 6)
    every = pool(x, packed, reference.REPRESENTATIONS)
    some = pool(x, packed, names)
    assert set(names) <= set(some)
    for name in names:
        torch.testing.assert_close(some[name], every[name], rtol=0, atol=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_gpu_that_pytorch_cannot_use_is_a_device_error_of_one_line() -> None:
    with pytest.raises(DeviceError, match=f"PyTorch {re.escape(torch.__version__)} cannot use it") as caught:
        usable_gpu()
    assert str(caught.value).isprintable()
    assert caught.value.exit_code == 69
    assert not torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_an_error_on_a_device_that_does_not_answer_tells_that_it_is_lost() -> None:
    assert is_lost(torch.device("cuda"), RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"))
    assert not is_lost(torch.device("cpu"), RuntimeError("shapes do not match"))


def nan_in_a_weight(tensors: dict[str, torch.Tensor]) -> None:
    tensors["layers.0.fc1.weight"][3, 5] = torch.nan


def infinity_in_a_norm(tensors: dict[str, torch.Tensor]) -> None:
    tensors["emb_layer_norm_after.bias"][2] = torch.inf


@pytest.mark.parametrize("change", [nan_in_a_weight, infinity_in_a_norm])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_weight_that_is_not_finite_refuses_every_sequence(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], threads: int
) -> None:
    reference.tiny_esm2(tmp_path / "tiny.pt")
    sequences = PLAIN + WITH_W
    spoilt = spoilt_engine(tmp_path / "tiny.pt", change, threads=threads, tokens_per_pack=30)
    embedded = spoilt.embed(sequences, outputs(0, 3))
    assert embedded.reasons == ["non-finite representation"] * len(sequences)
    assert set(embedded.values) == set(outputs(0, 3))
    for vectors in embedded.values.values():
        assert np.shape(vectors) == (len(sequences), 48)
        assert np.isnan(vectors).all()


def nan_for_w(tensors: dict[str, torch.Tensor]) -> None:
    tensors["embed_tokens.weight"][reference.ALPHABET.get_idx("W")] = torch.nan


@pytest.mark.parametrize("tokens_per_pack", [16, 1000])
@pytest.mark.parametrize("wanted", [*([output] for output in outputs(2)), outputs(1, 3)], ids=str)
@pytest.mark.parametrize("make", [reference.tiny_esm2, reference.tiny_esm1b])
def test_one_letter_that_is_not_finite_refuses_only_the_sequences_that_hold_it(
    tmp_path: Path, make: Callable[..., torch.nn.Module], wanted: list[Output], tokens_per_pack: int
) -> None:
    make(tmp_path / "tiny.pt", layers=3)
    sequences = [sequence for pair in zip(PLAIN, [*WITH_W, b"MW"], strict=True) for sequence in pair]
    healthy = engine(tmp_path / "tiny.pt", tokens_per_pack=tokens_per_pack).embed(sequences, wanted)
    found = spoilt_engine(tmp_path / "tiny.pt", nan_for_w, tokens_per_pack=tokens_per_pack).embed(sequences, wanted)
    assert healthy.reasons == [None] * len(sequences)
    assert found.reasons == ["non-finite representation" if b"W" in s else None for s in sequences]
    for output in wanted:
        for row, sequence in enumerate(sequences):
            expected = np.full_like(healthy.values[output][row], np.nan)
            if b"W" not in sequence:
                expected = healthy.values[output][row]
            np.testing.assert_allclose(found.values[output][row], expected, rtol=1e-5, atol=1e-6)


def test_a_sequence_with_one_output_that_is_not_finite_gets_none_at_all(tmp_path: Path) -> None:
    reference.tiny_esm2(tmp_path / "tiny.pt")
    wanted = [Output(0, "bos"), Output(0, "mean")]
    spoilt = spoilt_engine(tmp_path / "tiny.pt", nan_for_w)
    assert spoilt.embed([b"MKW"], wanted[:1]).reasons == [None]
    embedded = spoilt.embed([b"MKW", b"MK"], wanted)
    assert embedded.reasons == ["non-finite representation", None]
    for output in wanted:
        assert np.isnan(np.array(embedded.values[output])).all(axis=1).tolist() == [True, False]


def test_progress_and_figures_count_every_sequence_once(tmp_path: Path) -> None:
    reference.tiny_esm2(tmp_path / "tiny.pt")
    sequences = [b"MKV" * (1 + number % 7) for number in range(40)]
    counts: list[tuple[int, int, float]] = []
    worker = engine(tmp_path / "tiny.pt", threads=2, tokens_per_pack=50)
    treatment = Treatment.parse("window-9-3")
    worker.submit(sequences, outputs(3), treatment, lambda *done: counts.append(done))
    list(worker.drain())
    shape = worker.model.architecture
    assert sum(sequences for sequences, _, _ in counts) == worker.figures.sequences == 40
    assert sum(residues for _, residues, _ in counts) == worker.figures.residues == sum(map(len, sequences))
    lengths = np.array([len(sequence) for sequence in sequences])
    assert sum(flops for *_, flops in counts) == pytest.approx(treatment.cost(shape, lengths, 3).sum())
    assert worker.figures.packs == len(counts) >= worker.figures.tokens / 50
    assert 0.5 < worker.figures.fill <= 1
