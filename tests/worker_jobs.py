"""Worker jobs without a workflow: shards of random sequences for any number of models."""

import hashlib
import json
import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from esmflow.jobs import SHARD, Job, JobModel, Shard
from esmflow.model.fetch import fetch
from esmflow.spec import WHOLE, Output
from esmflow.store.store import Store


def sequences(count: int, longest: int, seed: int) -> list[bytes]:
    draw = random.Random(seed)
    return ["".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=draw.randint(1, longest))).encode() for _ in range(count)]


def make_job(root: Path, weights: Mapping[str, Path], shards: int, *, per_shard: int = 6, longest: int = 60) -> Path:
    """A job of so many shards for each model, all with the mean of layer 2; its file."""
    (root / "shards").mkdir(parents=True)
    models, parts = {}, []
    for name, path in weights.items():
        fetch(name, str(path), root / "weights").save(root / f"{name}.json")
        models[name] = JobModel(str(root / f"{name}.json"), "fp32")
        for number in range(shards):
            own = sequences(per_shard, longest, seed=number)
            keys = [hashlib.sha256(residues).digest() for residues in own]
            file = root / "shards" / f"{name}-{number}.parquet"
            pq.write_table(pa.table({"key": keys, "residues": own}, SHARD), file)
            residues = sum(map(len, own))
            shard = hashlib.sha256(f"{name} {number}".encode()).hexdigest()[:16]
            parts.append(
                Shard(shard, name, str(file), WHOLE, [Output(2, "mean")], per_shard, residues, float(residues), 0)
            )
    Job("0123456789ab", models, [], parts).save(root / "job.json")
    return root / "job.json"


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
