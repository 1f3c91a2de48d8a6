"""Official shapes in 16 bit and float32, by each attention kernel, against float32 on the CPU."""

import importlib.util
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import SEQUENCES, Known
from esmflow.engine.engine import Engine
from esmflow.engine.self_check import LEAST_COSINE, self_check
from esmflow.masking import masked_copies
from esmflow.model.attention import KERNELS
from esmflow.model.trunk import Esm
from esmflow.representation import Output
from esmflow.treatment import MASKED, WHOLE

MODULES = {
    "flash_attn_3": "flash_attn_interface",
    "flash_attn_4": "flash_attn.cute",
    "flash_attn": "flash_attn.flash_attn_interface",
    "torch_varlen": "torch.nn.attention.varlen",
}


def installed(kernel: str) -> bool:
    """Where FlashAttention 4 alone is installed, `flash_attn` is there all the same, as a directory."""
    try:
        return kernel == "sdpa" or importlib.util.find_spec(MODULES[kernel]) is not None
    except ModuleNotFoundError:
        return False


def require(kernel: str, device: torch.device) -> None:
    if kernel == "sdpa":
        return
    if device.type != "cuda":
        pytest.skip(f"{kernel} needs a CUDA device")
    if not installed(kernel):
        pytest.skip(f"{MODULES[kernel]} is not installed")
    if kernel in ("flash_attn_3", "flash_attn_4") and torch.cuda.get_device_capability(device) < (9, 0):
        pytest.skip(f"{kernel} is for Hopper and later")


def embed(model: Esm, known: Known) -> dict[Output, list[np.ndarray]]:
    engine = Engine(model, tokens_per_pack=400)
    found = engine.embed(SEQUENCES, known.outputs)
    engine.close()
    assert found.reasons == [None] * len(SEQUENCES)
    return found.values


def least_cosine(found: dict[Output, list[np.ndarray]], known: Known) -> float:
    cosines = []
    for output, expected in known.expected.items():
        for row, vector in enumerate(expected):
            # The std of a single residue is 0.
            if size := np.linalg.norm(vector):
                cosines.append(found[output][row] @ vector / size / np.linalg.norm(found[output][row]))
    return float(min(cosines))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("precision", LEAST_COSINE)
def test_16_bit_keeps_its_bound(known: Known, device: torch.device, precision: str, kernel: str) -> None:
    require(kernel, device)
    model = Esm(known.checkpoint, device, precision=precision, attention=kernel)
    assert model.attention == kernel
    cosine = least_cosine(embed(model, known), known)
    print(f"\n{known.checkpoint.architecture.embed_dim} {precision} {kernel}: least cosine {cosine:.7f}")
    assert cosine >= LEAST_COSINE[precision]


def test_float32_is_float32(known: Known, device: torch.device) -> None:
    """Without TF32, whose products have a relative error of 1e-3."""
    found = embed(Esm(known.checkpoint, device), known)
    for output, expected in known.expected.items():
        for row, vector in enumerate(expected):
            assert np.linalg.norm(found[output][row] - vector) <= 1e-4 * max(float(np.linalg.norm(vector)), 1e-6)


def test_auto_takes_a_kernel_that_is_there(known: Known, device: torch.device) -> None:
    model = Esm(known.checkpoint, device, precision="fp16")
    assert installed(model.attention)
    assert (model.attention == "sdpa") == (device.type == "cpu")
    assert model.kernels == ("triton" if device.type == "cuda" and find_c_compiler() else "plain")


def find_c_compiler() -> str | None:
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")


@pytest.mark.parametrize("precision", [*LEAST_COSINE, "fp32"])
def test_fused_kernels_give_what_pytorchs_operations_do(known: Known, cuda: torch.device, precision: str) -> None:
    fused, plain = (
        embed(Esm(known.checkpoint, cuda, precision=precision, kernels=kernels), known)
        for kernels in ("triton", "plain")
    )
    for output, vectors in plain.items():
        for ours, theirs in zip(fused[output], vectors, strict=True):
            if size := np.linalg.norm(theirs):
                assert ours @ theirs / size / np.linalg.norm(ours) >= LEAST_COSINE.get(precision, 1 - 1e-6)


def test_residues_logits_and_contacts(known: Known, device: torch.device) -> None:
    shape = known.checkpoint.architecture
    names = ["per_tok", "logits", *(["contacts"] if shape.contact_head else [])]
    outputs = [Output(shape.layers, name) for name in names]
    expected = Engine(Esm(known.checkpoint, torch.device("cpu"))).embed(SEQUENCES[1:4], outputs).values
    engine = Engine(Esm(known.checkpoint, device))
    found = engine.embed(SEQUENCES[1:4], outputs).values
    engine.close()
    for output in outputs:
        for ours, theirs in zip(found[output], expected[output], strict=True):
            assert np.abs(ours - theirs).max() <= 1e-3


@pytest.mark.parametrize("names", [["entropy", "wt_marginals", "likelihoods"], ["masked"]])
def test_likelihoods_and_masked_copies(known: Known, device: torch.device, names: list[str]) -> None:
    outputs = [Output(known.checkpoint.architecture.layers, name) for name in names]
    sequences, treatment = SEQUENCES[1:4], WHOLE
    if names == ["masked"]:
        sequences, treatment = [next(masked_copies(sequence, WHOLE, [1])) for sequence in sequences], MASKED
    expected = Engine(Esm(known.checkpoint, torch.device("cpu"))).embed(sequences, outputs, treatment).values
    engine = Engine(Esm(known.checkpoint, device))
    found = engine.embed(sequences, outputs, treatment).values
    engine.close()
    for output in outputs:
        for ours, theirs in zip(found[output], expected[output], strict=True):
            assert np.abs(ours - theirs).max() <= 1e-3 * max(float(np.abs(theirs).max()), 1)


def test_the_self_check_passes(known: Known, device: torch.device) -> None:
    precision = known.checkpoint.architecture.half_precision
    engine = Engine(Esm(known.checkpoint, device, precision=precision), exact=lambda: Esm(known.checkpoint, device))
    outputs = known.outputs[-4:]
    check = self_check(engine, SEQUENCES[2:], outputs, WHOLE, engine.embed(SEQUENCES[2:], outputs))
    engine.close()
    assert LEAST_COSINE[precision] <= check.least_cosine < 1
