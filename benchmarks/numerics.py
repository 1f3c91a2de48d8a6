"""Measure how far esmflow's numbers are from the reference code's, and print the tables of docs/numerics.md.

    .venv/bin/python benchmarks/numerics.py

On the CPU: float32 against the forward pass of fair-esm, for ESM-C of transformers: for random models of each kind and
the learned ESM-2 8M of the demo on real proteins. 16 bit for the latter, and for many random layers, to float32: with
attention in float32 (as on a CPU) and in 16 bit (as on a GPU), and, to show why it is float32, the residual stream in
16 bit, too; where there is a GPU, there as well. And the learned one by fair-esm's module with the products of its
layers in int8, to show why esmflow has no such precision.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from inputs import ROOT, uniprot
from torch import nn

sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]

import reference  # noqa: E402
import reference_esmc  # noqa: E402
from esmflow.engine.engine import Engine  # noqa: E402
from esmflow.model import weights  # noqa: E402
from esmflow.model.fetch import fetch  # noqa: E402
from esmflow.model.layouts import Checkpoint  # noqa: E402
from esmflow.model.pack import Pack  # noqa: E402
from esmflow.model.parts import LayerNorm  # noqa: E402
from esmflow.model.trunk import DTYPES, Esm  # noqa: E402
from esmflow.representation import VECTORS, Output  # noqa: E402
from random_weights import checkpoint, esm2, proteins, uniprot_like_lengths  # noqa: E402

CPU = torch.device("cpu")
Expected = list[dict[tuple[int, str], np.ndarray]]


class Attention16(Esm):
    """With attention in 16 bit, as it is on a GPU."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, *, precision: str) -> None:
        super().__init__(checkpoint, device, precision=precision)
        self.attention_dtype = DTYPES[precision]


class Residual16(Attention16):
    """With the residual stream in 16 bit, too, as in a model that was converted as a whole."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, *, precision: str) -> None:
        super().__init__(checkpoint, device, precision=precision)
        family, embed = self._family, self._family.embed
        family.embed = lambda x, positions: embed(x, positions).to(DTYPES[precision])
        family.norm_after = NormOf16(family.norm_after)
        for layer in family.layers:
            layer.attention_norm, layer.ffn_norm = NormOf16(layer.attention_norm), NormOf16(layer.ffn_norm)

    def representations(self, pack: Pack, *arguments: Any) -> Iterator[tuple[int, torch.Tensor]]:
        for layer, x in super().representations(pack, *arguments):
            yield layer, x.float()


class NormOf16(LayerNorm):
    """The same of a stream in 16 bit."""

    def __init__(self, norm: LayerNorm) -> None:
        super().__init__(norm.weight, norm.bias, norm.eps)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return super().__call__(x.float())


class Int8(nn.Module):
    """A dense layer of 8-bit numbers: a scale for each row of the weights, and for each token."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = rounded_to_int8(linear.weight), linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(rounded_to_int8(x), self.weight, self.bias)


def rounded_to_int8(x: torch.Tensor) -> torch.Tensor:
    x = x.detach()
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round() * scale


def make_int8(module: nn.Module) -> None:
    """Put `Int8` in the place of all dense layers within."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8(child))
        else:
            make_int8(child)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proteins", type=int, default=100, help="for the learned model; a quarter for the others")
    options = parser.parse_args()
    random = [protein.decode() for protein in proteins(uniprot_like_lengths(options.proteins // 4))]
    demo = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text())["models"]["esm2_8M"]
    descriptor = fetch("esm2_8M", demo["weights"], ROOT / "build" / "weights", sha256=demo["sha256"])
    learned_path = Path(descriptor.files[0])
    learned = reference.esm2_of_hugging_face(learned_path)
    real = [protein[:1022] for protein in uniprot() if protein.isalpha() and "J" not in protein]
    real = real[:: len(real) // options.proteins][: options.proteins]
    expected = [reference.represent_fully(learned, protein, contacts=len(protein) <= 400) for protein in real]

    print(
        "float32 on the CPU: largest relative L2 error of a protein; of logits and contacts the largest absolute one\n"
    )
    columns = [*VECTORS, "per_tok", "logits", "contacts"]
    print_row("model", "layers", *columns)
    print_row(*["---"] * (len(columns) + 2))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "tiny.pt"
        for name, make in (
            ("ESM-2, 4 random layers", lambda: reference.tiny_esm2(path, layers=4)),
            ("ESM-1b, 3 random layers", lambda: reference.tiny_esm1b(path, layers=3)),
            ("ESM-1v, 3 random layers", lambda: reference.tiny_esm1b(path, layers=3, norm_before=False)),
        ):
            model = make()
            own = [reference.represent_fully(model, sequence) for sequence in random]
            print_float32(name, Esm(weights.read([path]), CPU), random, own, columns)
        esmc, by_transformers = random_esmc(path, 4, random)
        print_float32("ESM-C, 4 random layers", Esm(esmc, CPU), random, by_transformers, columns)
        esmc, by_transformers = random_esmc(path, 30, [sequence[:100] for sequence in random[:8]])
    learned_weights = weights.read([learned_path])
    print_float32("ESM-2 8M, learned", Esm(learned_weights, CPU), real, expected, columns)

    deep = checkpoint(esm2(33, 320, 20), CPU)
    short = [sequence[:100] for sequence in random[:8]]
    exact = Esm(deep, CPU)
    values = embed(exact, short, vectors_of(exact))
    by_layers = [{output: vectors[row] for output, vectors in values.items()} for row in range(len(short))]
    print("\n16 bit: least cosine of a protein to float32\n")
    print_row("model", "precision", "attention", "residual stream", "device", "layers", *VECTORS)
    print_row(*["---"] * (len(VECTORS) + 6))
    devices = [CPU, *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    for name, weights_of, sequences, own in (
        ("ESM-2 8M, learned", learned_weights, real, expected),
        ("ESM-2, 33 random layers", deep, short, by_layers),
        ("ESM-C, 30 random layers", esmc, short, by_transformers),
    ):
        for device in devices:
            for precision in ("fp16", "bf16"):
                kinds = [("16 bit", "float32", Attention16), ("16 bit", "16 bit", Residual16)]
                if device == CPU:
                    kinds.insert(0, ("float32", "float32", Esm))
                for attention, stream, kind in kinds:
                    model = kind(weights_of, device, precision=precision)
                    depth = model.architecture.layers
                    values = embed(model, sequences, vectors_of(model))
                    print_cosines([name, precision, attention, stream, device.type], depth, values, own)
    make_int8(learned.layers)
    rows = [reference.represent_fully(learned, protein, contacts=False) for protein in real]
    values = {Output(*key): [row[key] for row in rows] for key in rows[0]}
    print_cosines(["ESM-2 8M, learned", "int8", "float32", "float32", "cpu"], learned.num_layers, values, expected)


def random_esmc(path: Path, layers: int, sequences: Sequence[str]) -> tuple[Checkpoint, Expected]:
    """An ESM-C, written to `path`, and what transformers makes of the sequences."""
    model = reference_esmc.tiny_esmc(layers=layers, embed_dim=320, ffn_dim=896)
    torch.save(reference_esmc.of_2024(model), path)
    return weights.read([path]), [reference_esmc.represent_fully(model, sequence) for sequence in sequences]


def vectors_of(model: Esm) -> list[Output]:
    return [Output(layer, kind) for layer in range(model.architecture.layers + 1) for kind in VECTORS]


def embed(model: Esm, sequences: Sequence[str], outputs: Sequence[Output]) -> dict[Output, list[np.ndarray]]:
    engine = Engine(model, threads=torch.get_num_threads())
    found = engine.embed([sequence.encode() for sequence in sequences], outputs)
    engine.close()
    assert found.reasons == [None] * len(sequences)
    return found.values


def print_float32(name: str, model: Esm, sequences: Sequence[str], expected: Expected, columns: Sequence[str]) -> None:
    shape = model.architecture
    outputs = [Output(layer, kind) for layer in range(shape.layers + 1) for kind in (*VECTORS, "per_tok")]
    outputs += [Output(shape.layers, kind) for kind in ("logits",) if shape.lm_head]
    values = embed(model, sequences, outputs)
    short = [row for row, own in enumerate(expected) if (shape.layers, "contacts") in own]
    contacts = Output(shape.layers, "contacts")
    maps = embed(model, [sequences[row] for row in short], [contacts])[contacts] if short else []
    for first, last in ((0, 0), (1, shape.layers - 1), (shape.layers, shape.layers)):
        cells = []
        for kind in columns:
            errors = [
                error(kind, found, own[output])
                for output in outputs
                if output.representation == kind and first <= output.layer <= last
                for found, own in zip(values[output], expected, strict=True)
            ]
            if kind == "contacts" and last == shape.layers:
                errors = [error(kind, found, expected[row][contacts]) for found, row in zip(maps, short, strict=True)]
            cells.append("" if not errors else f"{max(errors):.0e}" if max(errors) else "0")
        print_row(name, f"{first}" if first == last else f"{first} to {last}", *cells)


def error(kind: str, found: np.ndarray, expected: np.ndarray) -> float:
    difference = np.abs(found - expected)
    if kind in ("logits", "contacts"):
        return float(difference.max())
    return float(np.linalg.norm(difference) / np.linalg.norm(expected))


def print_cosines(
    about: Sequence[str], depth: int, values: Mapping[Output, Sequence[np.ndarray]], expected: Expected
) -> None:
    for first, last in ((0, depth - 1), (depth, depth)):
        cells = []
        for kind in VECTORS:
            cosines = [
                float(nn.functional.cosine_similarity(*map(torch.tensor, (found.astype(float), own[output])), dim=0))
                for output in values
                if output.representation == kind and first <= output.layer <= last
                for found, own in zip(values[output], expected, strict=True)
            ]
            cells.append(f"{min(cosines):.7f}")
        print_row(*about, f"{first}" if first == last else f"{first} to {last}", *cells)


def print_row(*cells: str) -> None:
    print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
