"""The GPU benchmark: one process, random weights of an official shape, proteins as long as UniProt's.

    make bench-gpu       the 650M shape
    python benchmarks/gpu.py --device cpu --layers 2 --embed-dim 64 --heads 4 --proteins 40 --gemm 512
                         all of it in small, on a CPU, to see that it runs

What is measured, in this order, and written as JSON (to benchmarks/results/gpu.json, for a GPU):
- gemm: the device's peak in square matrix products at the precision, against which model FLOPs are set
- engine: forward passes and pooling, sequences in memory to vectors in memory, and their share of that peak
- store: FASTA file to committed store files by the same engine, and its rate relative to the engine's alone
- transformers: EsmModel, bf16, sdpa attention, length-sorted padded batches of several token budgets (if installed)
- fair_esm: fair-esm's module in float32 on padded batches of 4,096 tokens, as its extraction script (if installed)
- parity: the least cosine of any vector in 16 bit to the same in float32
Needs the packages of tests/gpu/requirements.txt only. Nothing fails for being slow.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from forward import pad, padded_batches

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]

from esmflow.alphabet import BOS, EOS, TOKENS  # noqa: E402
from esmflow.architecture import Architecture  # noqa: E402
from esmflow.engine.budget import auto_tokens  # noqa: E402
from esmflow.engine.engine import Engine  # noqa: E402
from esmflow.inputs import fasta  # noqa: E402
from esmflow.model.trunk import DTYPES, Esm  # noqa: E402
from esmflow.representation import VECTORS, Output  # noqa: E402
from esmflow.store.store import commit  # noqa: E402
from random_weights import checkpoint, esm2, proteins, uniprot_like_lengths  # noqa: E402

SHARDS = 20
BUDGETS = [8192, 32768, 131072]
FAIR_ESM_BUDGET = 4096
PACKAGES = ["torch", "numpy", "pyarrow", "flash-attn", "transformers", "fair-esm"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=33)
    parser.add_argument("--embed-dim", type=int, default=1280)
    parser.add_argument("--heads", type=int, default=20)
    parser.add_argument("--proteins", type=int, default=20_000)
    parser.add_argument("--precision", choices=["fp16", "bf16", "fp32"], default="fp16")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--gemm", type=int, default=8192, help="rows of the square matrices")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device on this machine; --device cpu and small sizes show that it runs")
    shape = esm2(options.layers, options.embed_dim, options.heads)
    sequences = proteins(uniprot_like_lengths(options.proteins))
    few = sequences[:: max(len(sequences) // 2000, 1)]
    record: dict[str, Any] = about(device, shape, options.precision, sequences)

    def note(part: str, figures: dict[str, Any]) -> None:
        record[part] = figures
        print(f"{part}: {json.dumps(figures)}", flush=True)

    note("gemm", gemm(device, DTYPES[options.precision], options.gemm))
    peak = record["gemm"]["flops_per_second"]
    weights = checkpoint(shape, device)
    model = Esm(weights, device, precision=options.precision, attention=options.attention)
    engine = Engine(model, tokens_per_pack=auto_tokens(model), threads=torch.get_num_threads())
    note("engine", forward(engine, sequences, peak))
    note("store", to_store(engine, sequences, record["engine"]["residues_per_second"]))
    engine.close()
    del engine, model
    rate = record["engine"]["residues_per_second"]
    if importlib.util.find_spec("transformers"):
        note("transformers", transformers(shape, device, few, rate))
    if importlib.util.find_spec("esm"):
        note("fair_esm", fair_esm(shape, device, few[: len(few) // 4 or 1], rate))
    note("parity", parity(weights, device, few[:200]))

    rehearsal = ROOT / "build" / "benchmarks" / "gpu-rehearsal.json"
    output = options.output or (ROOT / "benchmarks" / "results" / "gpu.json" if device.type == "cuda" else rehearsal)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=1) + "\n")
    print(f"record: {output}")


def about(device: torch.device, shape: Architecture, precision: str, sequences: Sequence[bytes]) -> dict[str, Any]:
    modules = {"flash-attn": "flash_attn", "fair-esm": "esm"}
    present = [package for package in PACKAGES if importlib.util.find_spec(modules.get(package, package))]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "versions": {"python": platform.python_version(), "cuda": torch.version.cuda}
        | {package: version(package) for package in present},
        "shape": {"layers": shape.layers, "embed_dim": shape.embed_dim, "heads": shape.heads},
        "precision": precision,
        "proteins": len(sequences),
        "residues": sum(map(len, sequences)),
    }


def timed(device: torch.device, function: Callable[..., object], *arguments: object) -> float:
    """Seconds, with all that the device has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function(*arguments)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def gemm(device: torch.device, dtype: torch.dtype, size: int) -> dict[str, float]:
    """The best rate of five turns of ten products of random matrices."""
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    result = torch.empty_like(left)

    def turn() -> None:
        for _ in range(10):
            torch.mm(left, right, out=result)

    turn()
    return {"size": size, "flops_per_second": 10 * 2 * size**3 / min(timed(device, turn) for _ in range(5))}


def flops(shape: Architecture, sequences: Sequence[bytes]) -> float:
    return float(shape.flops(np.array([len(sequence) + 2 for sequence in sequences]), shape.layers).sum())


def forward(engine: Engine, sequences: Sequence[bytes], peak: float) -> dict[str, Any]:
    shape, device = engine.model.architecture, engine.model.device
    output = Output(shape.layers, "mean")
    engine.embed(sequences[:: max(len(sequences) // 500, 2)], [output])
    before = engine.figures.packs
    seconds = timed(device, engine.embed, sequences, [output])
    rate = flops(shape, sequences) / seconds
    return {
        "attention": engine.model.attention,
        "tokens_per_pack": engine.tokens_per_pack,
        "packs": engine.figures.packs - before,
        "fill": round(engine.figures.fill, 4),
        "splits": engine.figures.splits,
        "seconds": seconds,
        "residues_per_second": sum(map(len, sequences)) / seconds,
        "flops_per_second": rate,
        "share_of_gemm_peak": rate / peak,
    }


def to_store(engine: Engine, sequences: Sequence[bytes], rate: float) -> dict[str, Any]:
    """A FASTA file to store files, a shard being computed while the one before is committed, as the worker does it."""
    output = Output(engine.model.architecture.layers, "mean")
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "proteins.fasta"
        source.write_bytes(b"".join(b">protein%d\n%s\n" % entry for entry in enumerate(sequences)))

        def work() -> None:
            waiting = deque(shards(source, -(-len(sequences) // SHARDS)))
            begun: dict[int, list[bytes]] = {}
            while waiting or begun:
                if waiting and len(begun) < 2:
                    shard = waiting.popleft()
                    begun[engine.submit(shard, [output])] = shard
                for ticket, embedded in engine.step():
                    keys = [hashlib.sha256(residues).digest() for residues in begun.pop(ticket)]
                    path = Path(directory) / "store" / f"{ticket}.parquet"
                    commit(path, pa.array(keys, pa.binary(32)), embedded.reasons, embedded.values, {})

        seconds = timed(engine.model.device, work)
        written = sum(pq.read_metadata(path).num_rows for path in Path(directory).glob("store/*"))
    assert written == len(sequences)
    own = sum(map(len, sequences)) / seconds
    return {"seconds": seconds, "residues_per_second": own, "share_of_engine": own / rate}


def shards(source: Path, size: int) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for raw in fasta.read(source):
        batch.append(fasta.clean(raw).residues)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@torch.inference_mode()
def transformers(shape: Architecture, device: torch.device, sequences: Sequence[bytes], rate: float) -> dict[str, Any]:
    from transformers import EsmConfig, EsmModel

    config = EsmConfig(
        vocab_size=len(TOKENS),
        mask_token_id=TOKENS.index("<mask>"),
        pad_token_id=TOKENS.index("<pad>"),
        hidden_size=shape.embed_dim,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.ffn_dim,
        position_embedding_type="rotary",
        token_dropout=True,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="sdpa",
    )
    model = EsmModel(config, add_pooling_layer=False).to(device, torch.bfloat16).eval()
    numbers = {ord(letter): number for number, letter in enumerate(TOKENS) if len(letter) == 1}
    encoded = [[BOS, *(numbers[letter] for letter in sequence), EOS] for sequence in sequences]

    def embed(padded: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        means = []
        for tokens, mask in padded:
            tokens, mask = tokens.to(device, non_blocking=True), mask.to(device, non_blocking=True)
            hidden = model(tokens, attention_mask=mask).last_hidden_state
            weight = (mask * (tokens != BOS) * (tokens != EOS))[..., None].float()
            means.append((hidden * weight).sum(1) / weight.sum(1))
        torch.cat(means).cpu()

    seconds = {}
    for budget in BUDGETS:
        padded = [pad([encoded[row] for row in rows]) for rows in padded_batches([len(t) for t in encoded], budget)]
        try:
            embed(padded[::10])
            seconds[budget] = timed(device, embed, padded)
        except torch.OutOfMemoryError:
            break
    own = sum(map(len, sequences)) / min(seconds.values())
    return {"proteins": len(sequences), "seconds": seconds, **compared(own, rate)}


@torch.no_grad()
def fair_esm(shape: Architecture, device: torch.device, sequences: Sequence[bytes], rate: float) -> dict[str, Any]:
    import esm

    alphabet = esm.Alphabet.from_architecture("ESM-1b")
    model = esm.ESM2(shape.layers, shape.embed_dim, shape.heads, alphabet).to(device).eval()
    strings = [sequence.decode() for sequence in sequences]
    dataset = esm.FastaBatchedDataset(range(len(strings)), strings)
    convert = alphabet.get_batch_converter(1022)
    batches = [
        convert([dataset[row] for row in rows])
        for rows in dataset.get_batch_indices(FAIR_ESM_BUDGET, extra_toks_per_seq=1)
    ]

    def embed(some: Sequence[Any]) -> None:
        for _, texts, tokens in some:
            hidden = model(tokens.to(device), repr_layers=[shape.layers])["representations"][shape.layers].cpu()
            for row, text in enumerate(texts):
                hidden[row, 1 : len(text) + 1].mean(0)

    embed(batches[::10])
    seconds = timed(device, embed, batches)
    own = sum(map(len, sequences)) / seconds
    return {"proteins": len(sequences), "seconds": seconds, **compared(own, rate)}


def compared(own: float, rate: float) -> dict[str, float]:
    return {"residues_per_second": own, "engine_is_faster_by": rate / own}


def parity(weights: Any, device: torch.device, sequences: Sequence[bytes]) -> dict[str, float]:
    depth = weights.architecture.layers
    outputs = [Output(layer, name) for layer in sorted({1, depth // 2, depth}) for name in VECTORS]

    def embed(precision: str) -> dict[Output, np.ndarray]:
        engine = Engine(Esm(weights, device, precision=precision), tokens_per_pack=16384, threads=os.cpu_count() or 1)
        values = engine.embed(sequences, outputs).values
        engine.close()
        return {output: np.array(vectors, np.float64) for output, vectors in values.items()}

    exact = embed("fp32")
    least = {}
    for precision in ("fp16", "bf16"):
        found = embed(precision)
        least[precision] = min(float(cosines(found[output], exact[output]).min()) for output in outputs)
    return least


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    result: np.ndarray = (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    return result


if __name__ == "__main__":
    main()
