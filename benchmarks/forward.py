"""One contender's forward passes with mean pooling, weights loaded and warmed up; prints its figures as JSON.

- esmflow: esmflow.engine.engine.Engine, all of `embed`: packing, tokens, forward passes, pooling, collecting
- transformers: EsmModel with sdpa attention on length-sorted padded batches of several token budgets, masked mean over
  residues; tokens are made beforehand
- fair_esm: fair-esm's ESM2 module on the batches of its extraction script, forward pass only
- gemm: no model, but the machine's peak in matrix multiplications, against which FLOPs are set
With --precision, esmflow and gemm compute in bf16.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import MAX_RESIDUES

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "scripts")]

from esmflow.alphabet import BOS, EOS, PADDING, TOKENS  # noqa: E402
from esmflow.engine.engine import Engine  # noqa: E402
from esmflow.engine.packing import CPU_TOKENS, plan_packs  # noqa: E402
from esmflow.model import weights  # noqa: E402
from esmflow.model.pack import Pack  # noqa: E402
from esmflow.model.trunk import DTYPES, Esm  # noqa: E402
from esmflow.planned_model import Descriptor  # noqa: E402
from esmflow.representation import Output  # noqa: E402

BUDGETS = [1024, 2048, 4096, 8192]
FAIR_ESM_BUDGET = 4096
SQUARE, FFN = (2048, 2048, 2048), (2048, 320, 1280)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contender", choices=["esmflow", "transformers", "fair_esm", "gemm"])
    parser.add_argument("inputs", type=Path, help="directory that inputs.py has made")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--vectors", type=Path, help="where to save the vectors, float32 [proteins, 320]")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.contender == "gemm":
        print(json.dumps(gemm(options.threads, DTYPES[options.precision])))
        return
    proteins = (options.inputs / "proteins.fasta").read_text().split("\n")[1::2]
    contenders = {
        "esmflow": partial(esmflow, precision=options.precision),
        "transformers": transformers,
        "fair_esm": fair_esm,
    }
    figures, vectors = contenders[options.contender](options.inputs, proteins, options.threads)
    if options.vectors:
        np.save(options.vectors, vectors)
    print(json.dumps(figures))


class Watched:
    """An Esm that notes, for each pass with its pooling: thread, begin, end, CPU seconds of the thread, and tokens."""

    def __init__(self, model: Esm) -> None:
        self.architecture, self.device, self.precision = model.architecture, model.device, model.precision
        self.passes: list[tuple[int, float, float, float, int]] = []
        self._model = model

    def representations(self, pack: Pack, *arguments: Any) -> Iterator[tuple[int, torch.Tensor]]:
        start, cpu = time.perf_counter(), time.thread_time()
        # The engine pools a layer before it asks for the next, so its pooling lies within this generator's life.
        yield from self._model.representations(pack, *arguments)
        cpu = time.thread_time() - cpu
        self.passes.append((threading.get_ident(), start, time.perf_counter(), cpu, len(pack.tokens)))


def esmflow(inputs: Path, proteins: list[str], threads: int, *, precision: str) -> tuple[dict[str, Any], np.ndarray]:
    sequences = [protein.encode()[:MAX_RESIDUES] for protein in proteins]
    lengths = np.array([len(sequence) for sequence in sequences])
    parts = [Path(file) for file in Descriptor.load(inputs / "descriptor.json").files]
    model = Esm(weights.read(parts), torch.device("cpu"), precision=precision)
    shape = model.architecture
    output = Output(shape.layers, "mean")
    Engine(model, threads=threads).embed(sequences[::10], [output])

    watched = Watched(model)
    engine = Engine(watched, threads=threads)  # type: ignore[arg-type]
    start, cpu = time.perf_counter(), time.process_time()
    embedded = engine.embed(sequences, [output])
    end, cpu = time.perf_counter(), time.process_time() - cpu

    by_thread: dict[int, list[tuple[float, float]]] = {}
    for thread, begin, finish, *_ in watched.passes:
        by_thread.setdefault(thread, []).append((begin, finish))
    in_forward = sum(finish - begin for spans in by_thread.values() for begin, finish in spans)
    # A thread that has no pack left waits for the others; one that got none waits throughout.
    tail = sum(end - max(finish for _, finish in spans) for spans in by_thread.values())
    tail += (threads - len(by_thread)) * (end - start)
    passed = sum(tokens for *_, tokens in watched.passes)
    used = [int(lengths[rows].sum()) + 2 * len(rows) for rows in plan_packs(lengths + 2, engine.tokens_per_pack)]
    available = threads * (end - start)
    return {
        "seconds": {"esmflow": end - start},
        "tokens_per_pack": engine.tokens_per_pack,
        "packs": len(used),
        "padding_share": 1 - (int(lengths.sum()) + 2 * len(lengths)) / passed,
        "fill": engine.figures.fill,
        "fill_without_last_pack": float(np.mean(used[:-1] or used)) / engine.tokens_per_pack,
        "flops": float(shape.flops(lengths + 2, shape.layers).sum()),
        "share_outside_forward": 1 - in_forward / available,
        "share_waiting_for_last_packs": tail / available,
        # Unlike the shares of wall time, this one hardly depends on what else the machine does.
        "share_of_cpu_time_outside_forward": 1 - sum(seconds for *_, seconds, _ in watched.passes) / cpu,
    }, np.array(embedded.values[output])


def transformers(inputs: Path, proteins: list[str], threads: int) -> tuple[dict[str, Any], np.ndarray]:
    from transformers import EsmModel, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = EsmModel.from_pretrained(
        inputs / "hugging_face", add_pooling_layer=False, attn_implementation="sdpa", dtype=torch.float32
    ).eval()
    numbers = {letter: number for number, letter in enumerate(TOKENS)}
    encoded = [[BOS, *(numbers[letter] for letter in protein[:MAX_RESIDUES]), EOS] for protein in proteins]
    vectors = np.empty((len(proteins), model.config.hidden_size), np.float32)

    @torch.inference_mode()
    def embed(batches: list[list[int]], padded: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        for rows, (tokens, mask) in zip(batches, padded, strict=True):
            hidden = model(tokens, attention_mask=mask).last_hidden_state
            residues = mask.clone()
            residues[:, 0] = 0
            residues[torch.arange(len(rows)), mask.sum(1) - 1] = 0
            weight = residues[..., None].float()
            vectors[rows] = ((hidden * weight).sum(1) / weight.sum(1)).numpy()

    seconds, padding = {}, {}
    for budget in sorted({*BUDGETS, CPU_TOKENS}):
        batches = padded_batches([len(tokens) for tokens in encoded], budget)
        padded = [pad([encoded[row] for row in rows]) for rows in batches]
        embed(batches[::10], padded[::10])
        seconds[f"transformers, {budget} tokens"] = timed(embed, batches, padded)
        slots = sum(tokens.numel() for tokens, _ in padded)
        padding[f"transformers, {budget} tokens"] = 1 - sum(map(len, encoded)) / slots
    return {"seconds": seconds, "padding_share": padding, "threads": threads}, vectors


def padded_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Rows of each batch, longest first: batch size × longest is at most `budget`, but for a single long row."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > budget:
            batches.append([])
        batches[-1].append(row)
    return batches


def pad(sequences: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and attention mask, int64 [sequences, longest]."""
    longest = max(map(len, sequences))
    tokens = torch.tensor([tokens + [PADDING] * (longest - len(tokens)) for tokens in sequences])
    return tokens, (tokens != PADDING).long()


def fair_esm(inputs: Path, proteins: list[str], threads: int) -> tuple[dict[str, Any], np.ndarray]:
    from esm import FastaBatchedDataset, pretrained

    with torch.serialization.safe_globals([argparse.Namespace]):
        model, alphabet = pretrained.load_model_and_alphabet(str(inputs / "esm2_t6_8M.pt"))
    model.eval()
    dataset = FastaBatchedDataset(range(len(proteins)), proteins)
    convert = alphabet.get_batch_converter(MAX_RESIDUES)
    batches = [
        convert([dataset[row] for row in rows])
        for rows in dataset.get_batch_indices(FAIR_ESM_BUDGET, extra_toks_per_seq=1)
    ]

    @torch.no_grad()
    def forward(some: list[Any]) -> list[torch.Tensor]:
        return [
            model(tokens, repr_layers=[model.num_layers])["representations"][model.num_layers] for *_, tokens in some
        ]

    forward(batches[::10])
    start = time.perf_counter()
    hidden = forward(batches)
    seconds = time.perf_counter() - start
    vectors = np.empty((len(proteins), model.embed_dim), np.float32)
    for (rows, strings, _), values in zip(batches, hidden, strict=True):
        for row, string, value in zip(rows, strings, values, strict=True):
            vectors[row] = value[1 : min(len(string), MAX_RESIDUES) + 1].mean(0).numpy()
    slots = sum(tokens.numel() for *_, tokens in batches)
    real = sum(min(len(protein), MAX_RESIDUES) + 2 for protein in proteins)
    name = "fair-esm's module"
    return {"seconds": {name: seconds}, "padding_share": {name: 1 - real / slots}, "threads": threads}, vectors


def gemm(threads: int, dtype: torch.dtype) -> dict[str, float]:
    """The best FLOPs per second of matrix multiplications, on all cores in either of two ways.

    Besides the square ones, from which the peak comes, the shape of a feed-forward layer over a pack of 2,048 tokens.
    """
    together = max(_rate(lambda: _multiply(SQUARE, 5, dtype), SQUARE, 5) for _ in range(4))
    apart = max(_rate(lambda: _in_threads(threads, SQUARE, 5, dtype), SQUARE, 5 * threads) for _ in range(4))
    layer = max(_rate(lambda: _in_threads(threads, FFN, 100, dtype), FFN, 100 * threads) for _ in range(4))
    return {"together": together, "apart": apart, "peak": max(together, apart), "feed_forward_shape": layer}


def _multiply(shape: tuple[int, int, int], times: int, dtype: torch.dtype) -> None:
    rows, inner, columns = shape
    left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(columns, inner, dtype=dtype)
    result = torch.empty(rows, columns, dtype=dtype)
    for _ in range(times):
        torch.mm(left, right.T, out=result)


def _in_threads(threads: int, shape: tuple[int, int, int], times: int, dtype: torch.dtype) -> None:
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(lambda _: _multiply(shape, times, dtype), range(threads)))


def _rate(work: Callable[[], None], shape: tuple[int, int, int], times: int) -> float:
    return 2 * float(np.prod(shape)) * times / timed(work)


def timed(function: Callable[..., None], *arguments: object) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
