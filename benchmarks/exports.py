"""Exports of very many synthetic proteins, by the real commands, with their wall time and peak memory.

Vectors are random, as wide as those of ESM-2 8M, and committed to a store by esmflow itself. The proteins are short
for the disk's sake: per-residue values of 100,000 proteins of 16 residues already take 2 GB. As a program of its own
this writes the FASTA file and the store, so that the memory it takes is not counted to the commands that are measured.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from measure import HERE, PYTHON, ROOT, run

SEED = 11
SHARD = 4096
LENGTHS = (12, 20)
"""Random sequences of fewer residues might be equal."""
SPEC = {
    "layers": [-1],
    "long_sequences": "window",
    "max_length": 1022,
    "window_overlap": 256,
    "precision": "fp32",
}
TARGETS = {
    "csv": ["vectors.csv.gz"],
    "npy": ["vectors.npy", "ids.txt"],
    "uniprot_h5": ["per-protein.h5"],
    "uniprot_h5 per residue": ["per-residue.h5"],
    "fair_esm_pt": ["fair_esm_pt"],
    "bio_embeddings": ["reduced_embeddings_file.h5", "mapping_file.csv"],
    "anndata": ["vectors.h5ad"],
}


def measure(inputs: Path, work: Path, records: int) -> dict[str, Any]:
    """Seconds, peak memory and bytes written of each export."""
    work.mkdir(parents=True, exist_ok=True)
    descriptor = inputs / "descriptor.json"
    run([PYTHON, HERE / "exports.py", descriptor, work, "--records", str(records)], work / "synthetic.log")
    command = [PYTHON, ROOT / "scripts" / "export.py", "--catalog", work / "catalog.parquet", "--model", "esm2_8M"]
    command += ["--sequences", work / "sequences.parquet", "--descriptor", descriptor, "--store", work / "store"]
    costs, written = {}, {}
    for name, targets in TARGETS.items():
        spec = SPEC | {"representations": ["per_tok" if "residue" in name else "mean"]}
        paths = [work / "exports" / target for target in targets]
        form = name.partition(" ")[0]
        costs[name] = run([*command, "--spec", json.dumps(spec), "--format", form, "--", *paths], work / "export.log")
        files = [file for path in paths for file in [path, *path.glob("*")] if file.is_file()]
        assert len(files) == (records if form == "fair_esm_pt" else len(targets))
        written[name] = sum(file.stat().st_size for file in files)
    return {
        "records": records,
        "seconds": {name: round(cost.seconds, 2) for name, cost in costs.items()},
        "cpu_seconds": {name: round(cost.cpu_seconds, 2) for name, cost in costs.items()},
        "peak_bytes": {name: cost.peak_bytes for name, cost in costs.items()},
        "bytes_written": written,
        "others": {name: cost.others for name, cost in costs.items()},
    }


def write_sample(descriptor_file: Path, work: Path, records: int) -> None:
    """Write a catalog, its sequences, and a store with a mean and residues for each."""
    sys.path.insert(0, str(ROOT / "scripts"))
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from esmflow.inputs.catalog import ingest
    from esmflow.inputs.samples import Fasta
    from esmflow.planned_model import Descriptor, Space
    from esmflow.representation import Output
    from esmflow.store.store import Store, commit
    from esmflow.treatment import WHOLE

    random = np.random.default_rng(SEED)
    letters = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", dtype=np.uint8)
    with (work / "synthetic.fasta").open("wb") as file:
        for number in range(records):
            residues = letters[random.integers(0, 20, random.integers(*LENGTHS, endpoint=True))].tobytes()
            file.write(b">sp|S%06d|S%06d_RANDOM a random protein\n%s\n" % (number, number, residues))
    catalog, sequences = work / "catalog.parquet", work / "sequences.parquet"
    ingest("synthetic", [Fasta(work / "synthetic.fasta")], catalog, sequences, fail_on_invalid=True)
    descriptor = Descriptor.load(descriptor_file)
    shape, store = descriptor.architecture, Store(work / "store")
    space = Space(descriptor.sha256, WHOLE, "fp32")
    # A worker's shards are not in the order of the file either.
    order = random.permutation(records)
    table = pq.read_table(catalog, columns=["key", "length"])
    for first in range(0, records, SHARD):
        own = table.take(pa.array(order[first : first + SHARD]))
        lengths = own["length"].to_pylist()
        values = [random.standard_normal((length, shape.embed_dim), dtype=np.float32) for length in lengths]
        outputs = {
            Output(shape.layers, "mean"): [value.mean(0) for value in values],
            Output(shape.layers, "per_tok"): values,
        }
        metadata = {"precision": "fp32", "attention": "none"}
        path = store.path(space, f"{first:016x}")
        commit(path, own["key"].combine_chunks(), [None] * len(own), outputs, metadata)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("descriptor", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--records", type=int, default=100_000)
    options = parser.parse_args()
    write_sample(options.descriptor, options.work, options.records)
