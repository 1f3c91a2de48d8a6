"""The GPU benchmark: official shapes with random weights, proteins as long as UniProt's.

    make bench-gpu              all parts, for ESM-2 8M, 150M, 650M and 3B and ESM-C 600M
    python benchmarks/gpu.py --parts rates,variants --models 650M
    python benchmarks/gpu.py --device cpu --precision fp32 --models tiny --proteins 20 --repeats 1 --tokens 1024
                                all of it in small, on a CPU, to see that it runs

Each figure is a line of JSON, written at once (to benchmarks/results/gpu.jsonl, for a GPU). The parts:
- rates: matrix products of each model's shapes and a square one, copies, and attention alone by each kernel
- variants: the engine, sequences in memory to vectors in memory, with PyTorch's operations, with Triton's kernels, and
  if asked for with GELU in the matrix product or with compiled operations; tokens per pack; memory; time by kernel; the
  least cosine of any vector to float32
- store: FASTA file to committed store files by the real worker, from safetensors; its start, the device's idle share
- peers: transformers (sorted, padded, as it is and compiled) and, for ESM-2, fair-esm's module on the same proteins
Clocks are noted before and after. Shares of the peak (MFU) are of the best matrix product of this run, and of the
datasheet's figure. Needs torch, numpy, pyarrow and safetensors; what else the worker imports is stood in for by `bare/`
where it is missing. Nothing fails for being slow.
"""

import argparse
import gc
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

ROOT, HERE = Path(__file__).parents[1], Path(__file__).parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests"), str(HERE)]
sys.path.append(str(HERE / "bare"))

from esmflow.architecture import Architecture  # noqa: E402
from esmflow.engine.budget import auto_tokens  # noqa: E402
from esmflow.engine.engine import Engine  # noqa: E402
from esmflow.errors import DeviceError  # noqa: E402
from esmflow.model import attention, fair_esm, plain_kernels  # noqa: E402
from esmflow.model.layouts import Checkpoint  # noqa: E402
from esmflow.model.parts import Dense, WeightAndBias, dense  # noqa: E402
from esmflow.model.trunk import DTYPES, Esm  # noqa: E402
from esmflow.representation import VECTORS, Output  # noqa: E402
from random_weights import SHAPES, checkpoint, proteins, uniprot_like_lengths  # noqa: E402

#: Dense FLOPs per second in 16 bit, by NVIDIA's datasheets; a card's name holds one of these.
DATASHEET = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}
PACKAGES = ["torch", "triton", "numpy", "pyarrow", "flash-attn", "flash-attn-4", "transformers", "fair-esm"]
PEERS = ["transformers, eager", "transformers, compiled", "fair-esm"]
CLOCKS = "clocks.sm,clocks.mem,temperature.gpu,power.draw,driver_version"


class Bench:
    """What all parts have: the device, the proteins, the peak of this run, and the record."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, torch.device(options.device)
        self.dtype = DTYPES[options.precision]
        self.sequences = proteins(uniprot_like_lengths(options.proteins))
        self.residues = sum(map(len, self.sequences))
        self.peak = 0.0
        """FLOPs per second of the best matrix product so far."""
        on_gpu = self.device.type == "cuda"
        self.name = torch.cuda.get_device_name(self.device) if on_gpu else platform.processor() or "cpu"
        rehearsal = ROOT / "build" / "benchmarks" / "gpu-rehearsal.jsonl"
        self.output = options.output or (HERE / "results" / "gpu.jsonl" if on_gpu else rehearsal)
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self.output.write_text("")

    def note(self, part: str, **figures: Any) -> None:
        """Write a record."""
        line = json.dumps({"part": part, **figures}, default=str)
        print(line[:400], flush=True)
        with self.output.open("a") as file:
            file.write(line + "\n")

    def seconds(self, work: Callable[[], object]) -> float:
        """The median time of some turns, with all that the device has to do."""
        times = []
        for _ in range(self.options.repeats):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def share(self, flops: float, seconds: float) -> dict[str, float | None]:
        """Of the peak, measured and by the datasheet."""
        sheet = next((rate for card, rate in DATASHEET.items() if card in self.name), None)
        rate = flops / seconds
        return {
            "flops_per_second": rate,
            "mfu_of_measured_peak": rate / self.peak if self.peak else None,
            "mfu_of_datasheet": rate / sheet if sheet else None,
        }


def flops(shape: Architecture, sequences: Sequence[bytes]) -> float:
    return float(shape.flops(np.array([len(sequence) + 2 for sequence in sequences]), shape.layers).sum())


def rates(bench: Bench) -> None:
    """Matrix products, copies, attention."""
    tokens = bench.options.tokens[-1]

    def product(rows: int, inner: int, columns: int) -> float:
        left, right = torch.randn(rows, inner), torch.randn(inner, columns)
        left, right = left.to(bench.device, bench.dtype), right.to(bench.device, bench.dtype)
        result = torch.empty(rows, columns, device=bench.device, dtype=bench.dtype)
        turns = max(int(1e13 / (2 * rows * inner * columns)), 1) if bench.device.type == "cuda" else 2

        def work() -> None:
            for _ in range(turns):
                torch.mm(left, right, out=result)

        work()
        rate = turns * 2 * rows * inner * columns / bench.seconds(work)
        bench.peak = max(bench.peak, rate)
        return rate

    side = 8192 if bench.device.type == "cuda" else 512
    bench.note("rates", what="square product", size=side, flops_per_second=product(side, side, side))
    for name in bench.options.models:
        dim, ffn = SHAPES[name].embed_dim, SHAPES[name].ffn_dim
        # ESM-C's gate and what it lets through are one product.
        fc1 = 2 * ffn if SHAPES[name].kind == "ESM-C" else ffn
        shapes = {"qkv": (dim, 3 * dim), "out": (dim, dim), "fc1": (dim, fc1), "fc2": (ffn, dim)}
        found = {layer: product(tokens, *shape) for layer, shape in shapes.items()}
        bench.note("rates", what="products", model=name, tokens=tokens, flops_per_second=found)
    source = torch.empty(1 << (30 if bench.device.type == "cuda" else 24), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    copied = 2 * len(source) / bench.seconds(lambda: target.copy_(source))
    bench.note("rates", what="copy", bytes_per_second=copied)
    for name in bench.options.models:
        attentions(bench, name, tokens)


@torch.inference_mode()
def attentions(bench: Bench, name: str, tokens: int) -> None:
    shape = SHAPES[name]
    lengths = sorted((length + 2 for length in uniprot_like_lengths(tokens // 300 or 1)), reverse=True)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    qkv = torch.randn(sum(lengths), 3, shape.heads, shape.head_dim).to(bench.device, bench.dtype)
    cu_seqlens = torch.from_numpy(starts).to(bench.device)
    operations = 4 * shape.embed_dim * float(sum(length**2 for length in lengths))
    for kernel in attention.KERNELS:
        try:
            _, attend = attention.choose(kernel, bench.device, bench.dtype, shape.heads, shape.head_dim)
        except DeviceError as error:
            bench.note("rates", what="attention", model=name, kernel=kernel, unusable=str(error))
            continue
        attend(qkv, cu_seqlens, lengths)
        seconds = bench.seconds(partial(attend, qkv, cu_seqlens, lengths))
        bench.note("rates", what="attention", model=name, kernel=kernel, flops_per_second=operations / seconds)


def variants(weights: Checkpoint, bench: Bench) -> Iterator[tuple[str, Esm]]:
    """The engine's model in each way that it can be computed."""

    def model(kernels: str) -> Esm:
        return Esm(weights, bench.device, precision=bench.options.precision, kernels=kernels)

    for name in ("plain", "triton", "triton, GELU in the product", "compiled"):
        if name not in bench.options.variants:
            continue
        try:
            with patch.object(fair_esm, "dense", dense_with_gelu if "GELU" in name else fair_esm.dense):
                esm = model("triton" if name.startswith("triton") else "plain")
        except DeviceError as error:
            bench.note("variants", variant=name, unusable=str(error))
            continue
        if name == "compiled":
            operations = {key: value for key, value in vars(plain_kernels).items() if callable(value)}
            compiled = {key: torch.compile(operations[key], dynamic=True) for key in ("add_norm", "gate")}
            esm._kernels = SimpleNamespace(**{**operations, **compiled})
        yield name, esm


def dense_with_gelu(parameters: WeightAndBias, *, gelu: bool = False) -> Dense:
    """A dense layer with GELU within the product: on CUDA its tanh form, which is not fair-esm's."""
    weight, bias = parameters
    if not gelu:
        return dense(parameters)
    return lambda x: torch._addmm_activation(bias, x, weight.t(), use_gelu=True)


def engines(bench: Bench) -> None:
    """The engine's variants, tokens per pack, memory and time by kernel; then how near float32 they are."""
    for name in bench.options.models:
        weights = checkpoint(SHAPES[name], bench.device)
        exact = None
        for variant, esm in variants(weights, bench):
            for tokens in [*bench.options.tokens, auto_tokens(esm)]:
                bench.note("variants", model=name, variant=variant, **forward(bench, esm, tokens))
            if bench.device.type == "cuda":
                bench.note("profile", model=name, variant=variant, milliseconds=profile(bench, esm))
            exact = exact or vectors(bench, Esm(weights, bench.device))
            bench.note("parity", model=name, variant=variant, least_cosine=least_cosine(vectors(bench, esm), exact))
        del weights
        gc.collect()


def forward(bench: Bench, esm: Esm, tokens: int) -> dict[str, Any]:
    shape, on_gpu = esm.architecture, bench.device.type == "cuda"
    engine = Engine(esm, tokens_per_pack=tokens, threads=torch.get_num_threads())
    output = Output(shape.layers, "mean")
    engine.embed(bench.sequences[:: max(len(bench.sequences) // 500, 2)], [output])
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(bench.device)
    seconds = bench.seconds(lambda: engine.embed(bench.sequences, [output]))
    engine.close()
    return {
        "tokens_per_pack": tokens,
        "attention": esm.attention,
        "seconds": seconds,
        "residues_per_second": bench.residues / seconds,
        "fill": round(engine.figures.fill, 4),
        "splits": engine.figures.splits,
        "peak_bytes": torch.cuda.max_memory_allocated(bench.device) if on_gpu else None,
        **bench.share(flops(shape, bench.sequences), seconds),
    }


def profile(bench: Bench, esm: Esm) -> dict[str, float]:
    """Milliseconds on the device of the kernels that take longest, over some packs."""
    engine, output = Engine(esm, tokens_per_pack=bench.options.tokens[-1]), Output(esm.architecture.layers, "mean")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        engine.embed(bench.sequences[: max(2 * bench.options.tokens[-1] // 350, 1)], [output])
    engine.close()
    spent = {event.key[:90]: event.device_time_total / 1e3 for event in profiler.key_averages()}
    return dict(sorted(spent.items(), key=lambda item: -item[1])[:20])


def vectors(bench: Bench, esm: Esm) -> dict[Output, np.ndarray]:
    depth = esm.architecture.layers
    outputs = [Output(layer, name) for layer in sorted({1, depth // 2, depth}) for name in VECTORS]
    engine = Engine(esm, tokens_per_pack=16384, threads=torch.get_num_threads())
    values = engine.embed(bench.sequences[:200], outputs).values
    engine.close()
    return {output: np.asarray(value, np.float64) for output, value in values.items()}


def least_cosine(actual: dict[Output, np.ndarray], expected: dict[Output, np.ndarray]) -> float:
    def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        result: np.ndarray = (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
        return result

    return min(float(cosines(actual[output], expected[output]).min()) for output in expected)


def stores(bench: Bench) -> None:
    """FASTA to store, by the real worker in processes of its own."""
    from gpu_store import measure

    for name in bench.options.models:
        bench.note("store", model=name, **measure(bench, SHAPES[name]))


def peers(bench: Bench) -> None:
    """Other programs on some of the proteins."""
    import gpu_peers

    few = bench.sequences[:: max(len(bench.sequences) // 2000, 1)]
    asked = bench.options.peers
    for name in bench.options.models:
        shape = SHAPES[name]
        ours = {"model": name, "proteins": len(few), "residues": sum(map(len, few))}
        if importlib.util.find_spec("transformers"):
            for how in ("eager", "compiled"):
                whose = f"transformers, {how}"
                if whose not in asked:
                    continue
                try:
                    for tokens, seconds in gpu_peers.transformers(bench, shape, few, compiled=how == "compiled"):
                        share = bench.share(flops(shape, few), seconds)
                        bench.note("peers", whose=whose, tokens=tokens, seconds=seconds, **ours, **share)
                except Exception as error:  # Compilers raise nearly everything, and may be absent.
                    bench.note("peers", whose=whose, unusable=f"{type(error).__name__}: {error}".partition("\n")[0])
        if "fair-esm" in asked and shape.kind == "ESM-2" and importlib.util.find_spec("esm"):
            seconds = gpu_peers.fair_esm(bench, shape, few)
            bench.note("peers", whose="fair-esm", seconds=seconds, **ours, **bench.share(flops(shape, few), seconds))


def clocks() -> str:
    """What the card says of itself; empty without one."""
    with suppress(OSError, subprocess.CalledProcessError):
        command = ["nvidia-smi", f"--query-gpu={CLOCKS}", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return ""


def versions() -> dict[str, str | None]:
    present: dict[str, str | None] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            present[package] = version(package)
    return present


PARTS: dict[str, Callable[[Bench], None]] = {"rates": rates, "variants": engines, "store": stores, "peers": peers}


def main() -> None:
    def listed(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=listed, default=list(PARTS))
    parser.add_argument("--models", type=listed, default=["8M", "150M", "650M", "3B", "ESMC-600M"])
    parser.add_argument("--variants", type=lambda text: text.split(";"), default=["plain", "triton"])
    parser.add_argument("--peers", type=lambda text: text.split(";"), default=PEERS)
    parser.add_argument("--tokens", type=lambda text: [int(number) for number in text.split(",")])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--proteins", type=int, default=20_000)
    parser.add_argument("--precision", choices=["fp16", "bf16", "fp32"], default="fp16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    options.tokens = options.tokens or [16_384, 65_536]
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device on this machine; --device cpu and small sizes show that it runs")
    bench = Bench(options)
    bench.note(
        "about",
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        device=bench.name,
        versions=versions(),
        precision=options.precision,
        proteins=len(bench.sequences),
        residues=bench.residues,
        cpus=os.cpu_count(),
    )
    bench.note("clocks", when="before", clocks=clocks())
    for part in options.parts:
        PARTS[part](bench)
    bench.note("clocks", when="after", clocks=clocks())
    print(f"record: {bench.output}")


if __name__ == "__main__":
    main()
