"""FASTA to store in the GPU benchmark: the real worker on shards of random proteins, from weights in a file."""

import hashlib
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from esmflow.architecture import Architecture
from esmflow.inputs import fasta
from esmflow.job import SHARD, Job, Shard
from esmflow.model import esmc_layouts, weights
from esmflow.planned_model import ModelSpec, PlannedModel
from esmflow.representation import Output
from esmflow.sealed import seal
from esmflow.store.store import Store
from esmflow.treatment import WHOLE
from esmflow.worker.start import Start
from esmflow.worker.worker import work
from random_weights import checkpoint
from safetensors.torch import save_file

if TYPE_CHECKING:
    from gpu import Bench

SHARDS = 10


def measure(bench: "Bench", shape: Architecture) -> dict[str, Any]:
    """Seconds from the FASTA file to the last commit, without the worker's start, and the device's idle share."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        write_weights(root, shape)
        (root / "proteins.fasta").write_bytes(
            b"".join(b">protein%d\n%s\n" % entry for entry in enumerate(bench.sequences))
        )
        start = time.perf_counter()
        job = make_job(root, bench.options.precision)
        reading = time.perf_counter() - start
        on_gpu = bench.device.type == "cuda"
        begin = Start(("0",) if on_gpu else (), torch.get_num_threads(), None)
        if on_gpu:
            torch.cuda.empty_cache()
        work(job, Store(root / "store"), root / "receipt.json", begin, heartbeats=root / "heartbeats")
        receipt = json.loads((root / "receipt.json").read_text())
    figures, [use] = receipt["figures"], receipt["models"].values()
    seconds = reading + figures["seconds"] - figures["startup_seconds"]
    return {
        "seconds": seconds,
        "reading_seconds": reading,
        "startup_seconds": figures["startup_seconds"],
        "residues_per_second": bench.residues / seconds,
        "idle_share": figures["idle_share"],
        "waiting_seconds": figures["waiting_seconds"],
        "tokens_per_pack": use["tokens_per_pack"],
        "attention": use["attention"],
        "kernels": use["kernels"],
        "self_check": use["self_check"],
        **bench.share(sum(shard.cost for shard in job.shards), seconds),
    }


def write_weights(root: Path, shape: Architecture) -> None:
    """Random weights in 16 bit and their config.json, ESM-C's as transformers has them."""
    tensors = checkpoint(shape, torch.device("cpu")).tensors
    settings = {"num_attention_heads": shape.heads}
    names: dict[str, str] = {}
    if shape.kind == "ESM-C":
        [layout] = [layout for layout in esmc_layouts.LAYOUTS if layout.name.startswith("transformers")]
        names = {ours: theirs for theirs, ours in {**layout.trunk, **layout.heads}.items()}
    else:
        settings |= {"token_dropout": True, "position_embedding_type": "rotary"}

    def theirs(name: str) -> str:
        number = next((part for part in name.split(".") if part.isdecimal()), "")
        general = name.replace(f".{number}.", ".{}.", 1)
        return names.get(general, general).format(number)

    save_file(
        {theirs(name): tensor.half().contiguous() for name, tensor in tensors.items()}, root / "model.safetensors"
    )
    (root / "config.json").write_text(json.dumps(settings))


def make_job(root: Path, precision: str) -> Job:
    """The file's proteins in shards of as many, as the plan would make them without its database."""
    descriptor = weights.describe("random", root / "model.safetensors", None)
    spec = ModelSpec("random", (-1,), ("mean",), "full", 100_000, 0, precision)
    model = PlannedModel(spec, descriptor)
    residues = [fasta.clean(raw).residues for raw in fasta.read(root / "proteins.fasta")]
    size = -(-len(residues) // SHARDS)
    shards = []
    for first in range(0, len(residues), size):
        part = residues[first : first + size]
        file = root / f"shard{first}.parquet"
        keys = [hashlib.sha256(sequence).digest() for sequence in part]
        pq.write_table(pa.table({"key": keys, "residues": part}, SHARD), file)
        seal(file)
        lengths = pa.array([len(sequence) for sequence in part]).to_numpy()
        cost = float(WHOLE.cost(model.architecture, lengths, model.architecture.layers).sum())
        outputs = [Output(model.architecture.layers, "mean")]
        shards.append(
            Shard(f"{first:016x}", "random", str(file), WHOLE, outputs, len(part), int(lengths.sum()), cost, 0)
        )
    return Job("0123456789ab", {"random": model}, [], shards)
