"""Triton's kernels, by its interpreter and its compiler, for which no GPU is needed."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import random_weights
import reference
import reference_esmc
import torch
import torch.nn.functional as F
from conftest import ROOT
from esm.rotary_embedding import apply_rotary_pos_emb
from esmflow.engine.engine import Engine
from esmflow.errors import DeviceError
from esmflow.model import weights
from esmflow.model.kernels import check, choose_kernels
from esmflow.model.parts import LayerNorm
from esmflow.model.trunk import Esm
from esmflow.representation import VECTORS, Output
from workflow import FULL_SIZE

pytest.importorskip("triton", reason="Triton is for Linux")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("where there is a GPU, tests/gpu has the kernels", allow_module_level=True)

from esmflow.model import plain_kernels, triton_kernels

CPU = torch.device("cpu")
#: embed_dim and heads of ESM-2 from 8M to 15B (heads of 24 components at 35M) and of ESM-C.
SHAPES = [(320, 20), (480, 20), (640, 20), (1280, 20), (2560, 40), (5120, 40), (960, 15), (1152, 18)]
#: The narrowest, the widest, and those of heads and widths that are no powers of two, unless at full size.
TRIED = SHAPES if FULL_SIZE else [(320, 20), (480, 20), (5120, 40), (960, 15)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def assert_rounded(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for the last place; the interpreter truncates to bf16 where a GPU rounds."""
    last_place = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 1e-6}[actual.dtype]
    torch.testing.assert_close(actual.float(), expected, rtol=last_place, atol=4e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "heads"), TRIED)
def test_the_kernels_give_what_their_formulas_say(width: int, heads: int, dtype: torch.dtype) -> None:
    torch.manual_seed(width)
    for tokens in (1, 3):
        x, delta = torch.randn(tokens, width), torch.randn(tokens, width).to(dtype)
        weight, bias = torch.randn(width), torch.randn(width)
        total = x + 0.75 * delta.float()
        normed = triton_kernels.add_norm(x, delta, 0.75, LayerNorm(weight, bias, 1e-5), dtype)
        torch.testing.assert_close(x, total, rtol=1e-6, atol=1e-6)
        assert_rounded(normed, F.layer_norm(total, (width,), weight, bias))

        qkv = torch.randn(tokens, 3, heads, width // heads).to(dtype)
        frequencies = 10000 ** -(torch.arange(0, width // heads, 2) / (width // heads))
        angles = torch.randint(5000, (tokens,))[:, None] * frequencies
        for norm in (None, LayerNorm(torch.randn(2, width), None, 1e-5)):
            expected = qkv.float().clone()
            if norm:
                for place in (0, 1):
                    normal = F.layer_norm(expected[:, place].flatten(1), (width,), norm.weight[place])
                    expected[:, place] = normal.view(tokens, heads, -1)
            for place in (0, 1):
                cosine, sine = (torch.cat([part, part], dim=1)[None] for part in (angles.cos(), angles.sin()))
                turned = apply_rotary_pos_emb(expected[:, place].transpose(0, 1), cosine, sine)
                expected[:, place] = turned.transpose(0, 1)
            actual = qkv.clone()
            triton_kernels.rotate(actual, triton_kernels.turn(angles), norm)
            assert_rounded(actual, expected)

        gate_up = torch.randn(tokens, 2 * 939).to(dtype)
        gate, up = gate_up.float().chunk(2, dim=1)
        assert_rounded(triton_kernels.gate(gate_up), F.silu(gate) * up)


BOUNDS = [("fp32", 1 - 1e-10), ("fp16", 0.9999), ("bf16", 0.999)]


def least_cosine(model: Esm, sequences: list[str], expected: list[dict[tuple[int, str], np.ndarray]]) -> float:
    """Of every vector in every layer, to what the reference makes of the sequences."""
    outputs = [Output(layer, name) for layer in range(model.architecture.layers + 1) for name in VECTORS]
    engine = Engine(model, tokens_per_pack=100)
    vectors = engine.embed([sequence.encode() for sequence in sequences], outputs).values
    engine.close()

    def cosine(actual: np.ndarray, theirs: np.ndarray) -> float:
        actual, theirs = actual.astype(np.float64), theirs.astype(np.float64)
        return float(actual @ theirs / np.linalg.norm(actual) / np.linalg.norm(theirs))

    rows = range(len(sequences))
    return min(cosine(vectors[output][row], expected[row][output]) for row in rows for output in outputs)


@pytest.mark.parametrize(("precision", "bound"), BOUNDS[1:])
def test_a_learned_model_keeps_its_bounds_through_the_kernels(
    esm2_8m: Path, uniprot: list[str], precision: str, bound: float
) -> None:
    sequences = [random.Random(12).choice(uniprot)[:8]]
    theirs = reference.esm2_of_hugging_face(esm2_8m)
    model = Esm(weights.read([esm2_8m]), CPU, precision=precision, kernels="triton")
    assert model.kernels == "triton"
    expected = [reference.represent(theirs, sequence) for sequence in sequences]
    assert least_cosine(model, sequences, expected) >= bound


#: Writes weights into a directory; gives their path, and what makes the vectors of a sequence by the reference.
Family = Callable[[Path], tuple[Path, Callable[[str], dict[tuple[int, str], np.ndarray]]]]


def esm1b(directory: Path) -> tuple[Path, Callable[[str], dict[tuple[int, str], np.ndarray]]]:
    model = reference.tiny_esm1b(directory / "tiny.pt")
    return directory / "tiny.pt", lambda sequence: reference.represent(model, sequence)


def esmc(directory: Path) -> tuple[Path, Callable[[str], dict[tuple[int, str], np.ndarray]]]:
    model = reference_esmc.tiny_esmc()
    path = reference_esmc.write(directory, model, "2024")
    return path, lambda sequence: reference_esmc.represent_fully(model, sequence)


@pytest.mark.parametrize("family", [esm1b, esmc])
@pytest.mark.parametrize(("precision", "bound"), BOUNDS)
def test_other_families_keep_their_bounds_through_the_kernels(
    tmp_path: Path, family: Family, precision: str, bound: float
) -> None:
    sequences = ["MKTA", "XB"]
    path, represent = family(tmp_path)
    model = Esm(weights.read([path]), CPU, precision=precision, kernels="triton")
    assert least_cosine(model, sequences, [represent(sequence) for sequence in sequences]) >= bound


def test_the_kernels_compile_for_each_gpu_without_stack_or_spills(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, ROOT / "tests" / "compiled_kernels.py"],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    told = result.stdout.splitlines()
    assert {line.split(" sm_")[0] for line in told} == {"add_norm", "rotate", "rotate after a norm", "gate"}
    assert {line.split(" sm_")[1].split()[0] for line in told} == {"80", "89", "90", "100"}
    for line in told:
        assert "STACK:0 " in line, line
        assert "LOCAL:0 " in line, line


SHAPE = random_weights.esm2(1, 64, 4)


def test_kernels_that_give_other_numbers_are_found_out() -> None:
    check(triton_kernels, CPU, torch.float16, SHAPE)

    def halved(*arguments: object) -> torch.Tensor:
        return 0.5 * triton_kernels.gate(*arguments)  # type: ignore[arg-type]

    wrong = {
        "gate": halved,
        "rotate": lambda qkv, turn, norm: None,
        "add_norm": lambda x, delta, share, norm, dtype: norm(x + share * delta).to(dtype),
    }
    for name, kernel in wrong.items():
        kernels = SimpleNamespace(**{**vars(triton_kernels), name: kernel})
        with pytest.raises(ArithmeticError, match=name):
            check(kernels, CPU, torch.float16, SHAPE)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_where_triton_does_not_work_pytorch_does() -> None:
    device = torch.device("cuda")
    assert choose_kernels("auto", device, torch.float16, SHAPE) == ("plain", plain_kernels)
    with pytest.raises(DeviceError, match=r"Triton do not work on cuda"):
        choose_kernels("triton", device, torch.float16, SHAPE)


@pytest.mark.parametrize("number", DTYPES)
def test_pytorchs_own_operations_give_what_the_kernels_do(number: torch.dtype) -> None:
    shape = replace(SHAPE, kind="ESM-C")
    angles, norm = torch.rand(5, 8) * 100, LayerNorm(torch.randn(2, 64), None, 1e-5)
    rows = torch.randn(5, 64)
    qkv = torch.randn(5, 3, 4, 16).to(number)
    scores = []
    for kernels in (plain_kernels, triton_kernels):
        q, k = (kernels.arrange(qkv[:, place].flatten(1).T, shape.head_dim).T for place in (0, 1))
        own = torch.stack([q, k, qkv[:, 2].flatten(1)], dim=1).view_as(qkv)
        weight = torch.stack([kernels.arrange(part, shape.head_dim) for part in norm.weight])
        kernels.rotate(own, kernels.turn(angles), LayerNorm(weight, None, 1e-5))
        scores.append(torch.einsum("ihd,jhd->hij", own[:, 0].float(), own[:, 1].float()))
    torch.testing.assert_close(scores[0], scores[1], rtol=0.02, atol={torch.float32: 1e-4}.get(number, 0.1))
    assert kernels.arrange(rows, 16) is rows
