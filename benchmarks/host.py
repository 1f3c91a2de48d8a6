"""What a sequence costs the host: all that an engine does for it but the forward pass, in a thread.

    .venv/bin/python benchmarks/host.py                    20,000 proteins, one vector of 1,280 each

A model that computes nothing stands in the place of the network; what it takes is taken off. Reading the shard's file,
and committing it, which another thread does beside the next, are told apart. Prints microseconds of CPU time for each
sequence.
"""

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]

from esmflow.engine.budget import MOST_TOKENS  # noqa: E402
from esmflow.engine.engine import Engine  # noqa: E402
from esmflow.engine.packing import plan_packs  # noqa: E402
from esmflow.job import SHARD, read_shard  # noqa: E402
from esmflow.model.pack import Pack  # noqa: E402
from esmflow.model.pooling import represent  # noqa: E402
from esmflow.representation import Output  # noqa: E402
from esmflow.sealed import seal  # noqa: E402
from esmflow.store.store import commit  # noqa: E402
from random_weights import esm2, proteins, uniprot_like_lengths  # noqa: E402


class Idle:
    """In the place of a model of the shape: gives a layer without computing it."""

    def __init__(self, layers: int, embed_dim: int) -> None:
        self.architecture = esm2(layers, embed_dim, 20)
        self.device, self.precision, self.resident = torch.device("cpu"), "fp32", True
        self._x = torch.zeros(1, embed_dim)

    def representations(self, pack: Pack, *_: Any) -> Iterator[tuple[int, torch.Tensor]]:
        """All tokens of all packs have the same vector, which takes no memory."""
        yield self.architecture.layers, self._x.expand(len(pack.tokens), -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proteins", type=int, default=20_000)
    parser.add_argument("--embed-dim", type=int, default=1280)
    options = parser.parse_args()
    print(json.dumps(measure(options.proteins, options.embed_dim)))


def measure(count: int, embed_dim: int) -> dict[str, float]:
    """Microseconds of CPU time for each sequence."""
    # As the engine's own thread, and so that none spins while it waits for another.
    torch.set_num_threads(1)
    sequences = proteins(uniprot_like_lengths(count))
    output = Output(33, "bos")
    idle: Any = Idle(33, embed_dim)
    engine = Engine(idle, tokens_per_pack=MOST_TOKENS)
    tokens = np.array([len(sequence) + 2 for sequence in sequences])
    packs = [Pack.of([sequences[row] for row in rows]) for rows in plan_packs(tokens, MOST_TOKENS)]
    keys = pa.array([hashlib.sha256(sequence).digest() for sequence in sequences], pa.binary(32))
    embedded = engine.embed(sequences, [output])
    with tempfile.TemporaryDirectory() as directory:
        file, target = Path(directory) / "shard.parquet", Path(directory) / "store" / "shard.parquet"
        pq.write_table(pa.table([keys, pa.array(sequences, pa.binary())], schema=SHARD), file)
        seal(file)
        parts: dict[str, Callable[[], object]] = {
            "engine": lambda: engine.embed(sequences, [output]),
            "device": lambda: [represent(idle, [pack], [output]) for pack in packs],
            "of_these_planning_packs": lambda: plan_packs(tokens, MOST_TOKENS),
            "of_these_making_packs": lambda: [
                Pack.of(sequences[first : first + 300]) for first in range(0, count, 300)
            ],
            "reading": lambda: read_shard(file, 0, count),
            "committing": lambda: commit(target, keys, embedded.reasons, embedded.values, {}),
        }
        figures = {name: 1e6 * seconds(part) / count for name, part in parts.items()}
    engine.close()
    # What the network's stand-in takes, a GPU would do.
    figures["host"] = figures.pop("engine") - figures.pop("device")
    return {"sequences": count, "embed_dim": embed_dim, **{name: round(value, 2) for name, value in figures.items()}}


def seconds(work: Callable[[], object]) -> float:
    """CPU time of the process, the least of five."""
    times = []
    for _ in range(5):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


if __name__ == "__main__":
    main()
