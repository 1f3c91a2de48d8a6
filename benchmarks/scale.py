"""Ingest and plan of very many synthetic records, by the real commands, with their wall time and peak memory.

Lengths are drawn from those of the UniProt sample, residues are random, sequences unique. As a program of its own this
writes the FASTA file, so that the memory it takes is not counted to the commands that are measured.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from measure import HERE, PYTHON, ROOT, run

SEED = 7
SHORTEST = 12
"""Random sequences of fewer residues might be equal."""
SPEC = {
    "layers": [-1],
    "representations": ["mean"],
    "long_sequences": "window",
    "max_length": 1022,
    "window_overlap": 256,
    "precision": "auto",
}


def measure(inputs: Path, work: Path, records: int) -> dict[str, Any]:
    """Seconds and peak memory of each command."""
    work.mkdir(parents=True, exist_ok=True)
    fasta = work / "synthetic.fasta"
    run([PYTHON, HERE / "scale.py", inputs / "lengths.txt", fasta, "--records", str(records)], work / "synthetic.log")
    (work / "samples.tsv").write_text(f"sample\tfasta\nsynthetic\t{fasta}\n")
    (work / "models").mkdir(exist_ok=True)
    (work / "models" / "esm2_8M.json").write_text((inputs / "descriptor.json").read_text())
    ingest = [PYTHON, ROOT / "scripts" / "ingest.py", "--sample", "synthetic"]
    ingest += ["--catalog", work / "catalog" / "synthetic.parquet"]
    ingest += ["--sequences", work / "sequences" / "synthetic.parquet", "--", fasta]
    plan = [PYTHON, ROOT / "scripts" / "plan.py", "--models", json.dumps({"esm2_8M": SPEC})]
    plan += ["--samples", work / "samples.tsv", "--descriptors", work / "models", "--sequences", work / "sequences"]
    plan += ["--store", work / "store", "--receipts", work / "receipts", "--output", work / "plan"]
    plan += ["--target-minutes", "5", "--max-jobs", "8", "--gpus-per-job", "0"]
    costs = {"ingest": run(ingest, work / "ingest.log"), "plan": run(plan, work / "plan.log")}
    shards = [shard for job in (work / "plan" / "jobs").iterdir() for shard in json.loads(job.read_text())["shards"]]
    planned = sum(shard["sequences"] for shard in shards)
    assert planned == records, f"{planned} of {records} were planned"
    return {
        "records": records,
        "fasta_bytes": fasta.stat().st_size,
        "shards": len(shards),
        "seconds": {name: round(cost.seconds, 2) for name, cost in costs.items()},
        "cpu_seconds": {name: round(cost.cpu_seconds, 2) for name, cost in costs.items()},
        "peak_bytes": {name: cost.peak_bytes for name, cost in costs.items()},
        "others": {name: cost.others for name, cost in costs.items()},
        "total_seconds": round(sum(cost.seconds for cost in costs.values()), 2),
        "highest_peak_bytes": max(cost.peak_bytes for cost in costs.values()),
    }


def write_fasta(lengths_file: Path, fasta: Path, records: int) -> None:
    """Write the synthetic records, in lines of 60 residues as UniProt does."""
    import numpy as np

    random = np.random.default_rng(SEED)
    known = np.maximum(np.loadtxt(lengths_file, dtype=np.int64), SHORTEST)
    letters = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", dtype=np.uint8)
    with fasta.open("wb") as file:
        for first in range(0, records, 10_000):
            lengths = random.choice(known, min(10_000, records - first))
            residues = letters[random.integers(0, 20, lengths.sum(), dtype=np.uint8)].tobytes()
            begin = 0
            for number, length in enumerate(lengths.tolist(), first):
                file.write(b">synthetic%09d a random protein\n" % number)
                for line in range(begin, begin + length, 60):
                    file.write(residues[line : min(line + 60, begin + length)] + b"\n")
                begin += length


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lengths", type=Path)
    parser.add_argument("fasta", type=Path)
    parser.add_argument("--records", type=int, default=1_000_000)
    options = parser.parse_args()
    write_fasta(options.lengths, options.fasta, options.records)
