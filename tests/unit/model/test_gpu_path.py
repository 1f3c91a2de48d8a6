"""The forward pass as a GPU runs it, traced without one: devices, kernels, and what they move through memory."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import random_weights
import reference
import reference_esmc
import torch
from conftest import ROOT
from esmflow.model import weights
from esmflow.model.layouts import Checkpoint
from esmflow.model.pack import Pack
from esmflow.model.pooling import represent
from esmflow.model.trunk import Esm
from esmflow.representation import REPRESENTATIONS, Output
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tracing import CUDA, VIEWS, Traffic, empty_checkpoint, on_a_gpu_that_is_not_there, without_content
from workflow import FULL_SIZE

PRECISIONS = ["fp32", *(["fp16"] if FULL_SIZE else []), "bf16"]
KERNELS = ["plain", *(["triton"] if find_spec("triton") else [])]
ATTENTION = {"scaled_dot_product_attention", "_scaled_dot_product_flash_attention"}
PACK = [b"MKTAYIAKQRQISFVK", b"MKTAYIAKQRQISFVK", b"MKV"]


def esm2(directory: Path) -> Checkpoint:
    reference.tiny_esm2(directory / "tiny.pt")
    return weights.read([directory / "tiny.pt"])


def esm1b(directory: Path) -> Checkpoint:
    reference.tiny_esm1b(directory / "tiny.pt")
    return weights.read([directory / "tiny.pt"])


def esmc(directory: Path) -> Checkpoint:
    return weights.read([reference_esmc.write(directory, reference_esmc.tiny_esmc(), "2024")])


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("family", [esm2, esm1b, esmc])
def test_all_that_a_forward_pass_makes_is_on_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: Callable[[Path], Checkpoint], kernels: str
) -> None:
    checkpoint = family(tmp_path)
    shape = checkpoint.architecture
    taken = [kind for kind in REPRESENTATIONS.values() if kind.has_head(shape) and not kind.from_copies]
    alone = [[kind.name] for kind in taken if kind.at_masks]
    together = [kind.name for kind in taken if not kind.at_masks]
    for precision in PRECISIONS:
        with on_a_gpu_that_is_not_there(monkeypatch):
            model = Esm(without_content(checkpoint), CUDA, precision=precision, attention="sdpa", kernels=kernels)
            for chosen in (together, *alone):
                pack = Pack.of([b"MK#AYIAK" if chosen in alone else residues for residues in PACK])
                layers = range(shape.layers + 1)
                outputs = [
                    Output(layer, name)
                    for name in chosen
                    for layer in layers
                    if layer == shape.layers or not REPRESENTATIONS[name].of_last_layer
                ]
                tensors = represent(model, [pack], outputs).tensors.values()
                assert {x.device for x in tensors} == {CUDA}
                assert {x.dtype for x in tensors} == {torch.float32}


SHAPES = {
    "ESM-2": random_weights.esm2(3, 1280, 20),
    "ESM-1b": replace(random_weights.esm2(3, 1280, 20), kind="ESM-1b", max_residues=1022),
    "ESM-C": replace(random_weights.esm2(3, 1152, 18), kind="ESM-C", ffn_dim=3072, vocabulary=64),
}
#: Bytes per token and dimension between the matrix products and attention of a layer: norms and casts 28, sums 20, GELU
#: 16 (SwiGLU, of a network 8/3 as wide, 26.7), rotation 8 (in bf16, of which there are no complex numbers, 40), and
#: norms of queries and keys with their rotation 40 (56).
PLAIN = {
    ("ESM-2", "fp16"): 72,
    ("ESM-2", "bf16"): 104,
    ("ESM-1b", "fp16"): 64,
    ("ESM-1b", "bf16"): 64,
    ("ESM-C", "fp16"): 115,
    ("ESM-C", "bf16"): 131,
}
#: The same with Triton: sums and norms in one pass 24, GELU or SwiGLU 16, rotation 8.
TRITON = {"ESM-2": 48, "ESM-1b": 40, "ESM-C": 48}


def one_layer(kind: str, precision: str, kernels: str, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], float]:
    """Kernels of a layer, from one attention to the next, and bytes per token and dimension between products.

    What is smaller than a pack's vectors, such as the table of angles, is not counted.
    """
    shape, tokens = SHAPES[kind], 4000
    with on_a_gpu_that_is_not_there(monkeypatch):
        model = Esm(empty_checkpoint(shape), CUDA, precision=precision, attention="sdpa", kernels=kernels)
        with Traffic(tokens * shape.embed_dim) as traffic:
            list(model.representations(Pack.of([b"A" * 98] * 40), [3]))
    begins = [number for number, (name, _) in enumerate(traffic.kernels) if name in ATTENTION]
    layer = traffic.kernels[begins[0] : begins[1]]
    assert layer[1][0] == "copy_", "which attention over a whole pack has not"
    del layer[1]
    between = sum(size for name, size in layer if name not in {"linear", *ATTENTION})
    return [name for name, _ in layer], between / tokens / shape.embed_dim


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("kind", SHAPES)
def test_with_triton_a_layer_is_9_kernels_and_moves_48_bytes_per_token_and_dimension(
    monkeypatch: pytest.MonkeyPatch, kind: str, precision: str
) -> None:
    pytest.importorskip("triton")
    kernels, moved = one_layer(kind, precision, "triton", monkeypatch)
    print(f"\n{kind} {precision}: {len(kernels)} kernels, {moved:.1f} bytes: {', '.join(kernels)}")
    assert len(kernels) <= 9
    assert moved <= TRITON[kind] <= 48


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("kind", SHAPES)
def test_without_triton_a_layer_moves_no_more_than_its_parts_need(
    monkeypatch: pytest.MonkeyPatch, kind: str, precision: str
) -> None:
    kernels, moved = one_layer(kind, precision, "plain", monkeypatch)
    print(f"\n{kind} {precision}: {len(kernels)} kernels, {moved:.1f} bytes: {', '.join(kernels)}")
    assert moved <= PLAIN[kind, precision]


def test_the_documents_tell_these_bytes() -> None:
    lines = (ROOT / "docs" / "gpu.md").read_text().splitlines()
    for kind in SHAPES:
        for kernels, fp16, bf16 in (
            ("Triton", TRITON[kind], TRITON[kind]),
            ("PyTorch", PLAIN[kind, "fp16"], PLAIN[kind, "bf16"]),
        ):
            [line] = [line for line in lines if line.startswith(f"| {kind}") and f", {kernels} |" in line]
            assert line.endswith(f"| {fp16} | {bf16} |")


class Launched(TorchDispatchMode):
    """How many kernels run, and the shapes of what comes from the host."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = 0
        self.uploads: set[torch.Size] = set()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        self.kernels += not VIEWS.fullmatch(function.name().split("::")[1].split(".")[0])
        sources = [x.device.type for x in tree_leaves(arguments) if isinstance(x, torch.Tensor)]
        if sources == ["cpu"] and isinstance(result, torch.Tensor) and result.device == CUDA:
            self.uploads.add(result.shape)
        return result


def test_heads_come_to_the_gpu_once_and_many_sequences_take_the_kernels_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = esm2(tmp_path)
    last = checkpoint.architecture.layers
    heads = {
        x.shape for name, x in checkpoint.tensors.items() if name.startswith(("lm_head", "contact_head")) and x.ndim > 1
    }
    launched = []
    with on_a_gpu_that_is_not_there(monkeypatch):
        model = Esm(without_content(checkpoint), CUDA, attention="sdpa", kernels="plain")
        for sequences in (1, 1, 20):
            with Launched() as counts:
                represent(
                    model, [Pack.of([b"MKTAYIAKQR"] * sequences)], [Output(last, "contacts"), Output(last, "logits")]
                )
            launched.append(counts)
    first, again, many = launched
    assert len(heads) == 3
    assert heads <= first.uploads
    assert not heads & again.uploads
    # Each map is cut from those that were computed together.
    assert many.kernels <= again.kernels + 20


class Held(TorchDispatchMode):
    """The most bytes on the GPU that tensors have had together."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._storages: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.device == CUDA and (number := id(x.untyped_storage())):
                self._count(x.untyped_storage(), number)
        return result

    def _count(self, storage: torch.UntypedStorage, number: int) -> None:
        if number not in self._storages:
            self._storages.add(number)
            size = storage.nbytes()
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._free, number, size)

    def _free(self, number: int, size: int) -> None:
        self._storages.discard(number)
        self.now -= size


@pytest.mark.parametrize("kind", SHAPES)
def test_float32_beside_16_bit_takes_the_memory_of_one_layer(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    shape = replace(SHAPES[kind], layers=6)
    bytes_per_layer = 4 * shape.layer_numbers
    outputs = [Output(6, "mean"), Output(3, "per_tok")]
    packs = [Pack.of([residues]) for residues in PACK]
    with on_a_gpu_that_is_not_there(monkeypatch), Held() as held:
        exact = Esm(empty_checkpoint(shape), CUDA, attention="sdpa", kernels="plain", resident=False)
        represent(exact, packs, outputs)
        print(f"\n{kind}: {held.most / bytes_per_layer:.2f} layers")
        assert bytes_per_layer <= held.most <= 1.25 * bytes_per_layer
