"""Worker jobs without a workflow: shards of random sequences for any number of models."""

import hashlib
import json
import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from esmflow.job import SHARD, Job, Shard
from esmflow.planned_model import ModelSpec, PlannedModel
from esmflow.representation import Output
from esmflow.sealed import seal
from esmflow.store.store import Store
from esmflow.treatment import WHOLE


def sequences(count: int, longest: int, seed: int) -> list[bytes]:
    draw = random.Random(seed)
    return ["".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=draw.randint(1, longest))).encode() for _ in range(count)]


def planned_model(path: Path, name: str, store: Path) -> PlannedModel:
    """A model of these weights, in float32."""
    # Only here: processes that compute nothing import this file, and start at once without PyTorch.
    from esmflow.model.fetch import fetch

    return PlannedModel(ModelSpec(name, (2,), ("mean",), "full", 1022, 0, "fp32"), fetch(name, str(path), store))


def make_job(root: Path, weights: Mapping[str, Path], shards: int, *, per_shard: int = 6, longest: int = 60) -> Path:
    """A job of so many shards for each model, all with the mean of layer 2; its file."""
    models = {name: planned_model(path, name, root / "weights") for name, path in weights.items()}
    parts = [shard for name in models for shard in make_shards(root / "shards", name, shards, per_shard, longest)]
    Job("0123456789ab", models, [], parts).save(root / "job.json")
    return root / "job.json"


def make_shards(directory: Path, model: str, count: int, per_shard: int = 6, longest: int = 60) -> list[Shard]:
    """So many shards of random sequences, with the mean of layer 2."""
    directory.mkdir(parents=True, exist_ok=True)
    shards = []
    for number in range(count):
        own = sequences(per_shard, longest, seed=number)
        keys = [hashlib.sha256(residues).digest() for residues in own]
        file = directory / f"{model}-{number}.parquet"
        pq.write_table(pa.table({"key": keys, "residues": own}, SHARD), file)
        seal(file)
        residues = sum(map(len, own))
        name = hashlib.sha256(f"{model} {number}".encode()).hexdigest()[:16]
        shards.append(
            Shard(name, model, str(file), WHOLE, [Output(2, "mean")], per_shard, residues, float(residues), 0)
        )
    return shards


def stored(store: Store) -> dict[tuple[str, bytes], np.ndarray | str]:
    """What the store has of each (weights, key): the vector, or the reason why there is none."""
    found: dict[tuple[str, bytes], np.ndarray | str] = {}
    for path in sorted(store.root.rglob("[!.]*.parquet")):
        for row in pq.read_table(path).to_pylist():
            assert (path.parts[-3], row["key"], path.stem) not in found
            found[path.parts[-3], row["key"]] = row["reason"] or np.array(row["layer2.mean"], np.float32)
    return found


def wanted(job_file: Path) -> int:
    """How many rows a job has to commit."""
    return sum(shard["sequences"] for shard in json.loads(job_file.read_text())["shards"])


def rows(store: Store) -> int:
    """How many rows were committed."""
    return sum(pq.read_metadata(path).num_rows for path in store.root.rglob("[!.]*.parquet"))


def assert_equal(found: Store, expected: Store) -> None:
    ours, theirs = stored(found), stored(expected)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_allclose(ours[key], value, rtol=1e-5, atol=1e-6)
