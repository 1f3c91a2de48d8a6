"""One contender's forward passes with a model of the 650M shape and random weights; prints its figures as JSON.

- esmflow: esmflow.engine.engine.Engine, all of `embed`, pooling included
- fair_esm: fair-esm's ESM2 module on the batches of its extraction script, forward pass only
Both have the same weights and proteins, and are warmed up on the shortest protein.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from forward import FAIR_ESM_BUDGET
from measure import MAX_RESIDUES, ROOT

sys.path[:0] = [str(ROOT / "tests")]

from esmflow.engine.engine import Engine  # noqa: E402
from esmflow.model.trunk import Esm  # noqa: E402
from esmflow.model.weights import Checkpoint  # noqa: E402
from esmflow.representation import Output  # noqa: E402
from random_weights import SHAPES, checkpoint, shallow  # noqa: E402

Vectors = list[np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contender", choices=["esmflow", "fair_esm"])
    parser.add_argument("fasta", type=Path, help="proteins, each on one line")
    parser.add_argument("--proteins", type=int, default=8, help="how many of them, from the first")
    parser.add_argument("--layers", type=int, default=33)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="esmflow's")
    parser.add_argument("--vectors", type=Path, help="where to save the vectors, float32 [proteins, 1280]")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    proteins = [line[:MAX_RESIDUES] for line in options.fasta.read_text().split("\n")[1::2]][: options.proteins]
    weights = checkpoint(shallow(SHAPES["650M"], options.layers), torch.device("cpu"))
    contenders = {
        "esmflow": lambda: esmflow(weights, options.threads, options.precision),
        "fair_esm": lambda: fair_esm(weights),
    }
    embed = contenders[options.contender]()
    embed([min(proteins, key=len)])
    start, cpu = time.perf_counter(), time.process_time()
    vectors = embed(proteins)
    spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    if options.vectors:
        np.save(options.vectors, np.array(vectors))
    shape, lengths = weights.architecture, np.array([len(protein) for protein in proteins])
    flops = float(shape.flops(lengths + 2, shape.layers).sum())
    print(json.dumps(spent | {"proteins": len(proteins), "residues": int(lengths.sum()), "flops": flops}))


def esmflow(weights: Checkpoint, threads: int, precision: str) -> Callable[[Sequence[str]], Vectors]:
    engine = Engine(Esm(weights, torch.device("cpu"), precision=precision), threads=threads)
    mean = Output(weights.architecture.layers, "mean")
    return lambda proteins: engine.embed([protein.encode() for protein in proteins], [mean]).values[mean]


def fair_esm(weights: Checkpoint) -> Callable[[Sequence[str]], Vectors]:
    import esm

    shape, alphabet = weights.architecture, esm.Alphabet.from_architecture("ESM-1b")
    model = esm.ESM2(shape.layers, shape.embed_dim, shape.heads, alphabet)
    model.load_state_dict(weights.tensors)
    model.eval()
    convert = alphabet.get_batch_converter()

    @torch.no_grad()
    def embed(proteins: Sequence[str]) -> Vectors:
        dataset = esm.FastaBatchedDataset(range(len(proteins)), proteins)
        vectors: Vectors = [np.empty(0)] * len(proteins)
        for rows in dataset.get_batch_indices(FAIR_ESM_BUDGET, extra_toks_per_seq=1):
            labels, strings, tokens = convert([dataset[row] for row in rows])
            hidden = model(tokens, repr_layers=[shape.layers])["representations"][shape.layers]
            for label, string, values in zip(labels, strings, hidden, strict=True):
                vectors[label] = values[1 : len(string) + 1].mean(0).numpy()
        return vectors

    return embed


if __name__ == "__main__":
    main()
