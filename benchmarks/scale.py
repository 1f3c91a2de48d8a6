"""Very many records: the real commands on synthetic ones, with their wall time and peak memory.

- scale: ingest and plan of so many records from FASTA
- large_plan: plan of ten million records in 20 samples, of which the store has half
- large_table: a feature table of a million records, 320 numbers each, that lie in the store in random order
- many_samples: `snakemake` where nothing is to be done, over 200 samples

Lengths are drawn from those of the UniProt sample; residues, keys and vectors are random. As a program of its own this
writes the inputs, so that the memory it takes is not counted to the commands that are measured.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measure import HERE, PYTHON, ROOT, Cost, run

SEED = 7
SHORTEST, LONGEST = 12, 1022
"""Random sequences of fewer residues might be equal; longer ones are treated in another way."""
BATCH = 10_000
MODEL, EMBED_DIM = "esm2_8M", 320
SPEC = {
    "layers": [-1],
    "representations": ["mean"],
    "long_sequences": "window",
    "max_length": LONGEST,
    "window_overlap": 256,
    "precision": "auto",
}
SAMPLES = 20


def measure(inputs: Path, work: Path, records: int) -> dict[str, Any]:
    """Ingest and plan."""
    make_directories(inputs, work)
    fasta = work / "synthetic.fasta"
    write("fasta", inputs, fasta, work, "--records", str(records))
    (work / "samples.tsv").write_text(f"sample\tfasta\nsynthetic\t{fasta}\n")
    ingest = [PYTHON, ROOT / "scripts" / "ingest.py", "--sample", "synthetic"]
    ingest += ["--catalog", work / "catalog" / "synthetic.parquet"]
    ingest += ["--sequences", work / "sequences" / "synthetic.parquet", "--", fasta]
    costs = {"ingest": run(ingest, work / "ingest.log"), "plan": plan(work, records)}
    return {"records": records, "fasta_bytes": fasta.stat().st_size, "shards": count_shards(work)} | figures(costs)


def measure_plan(inputs: Path, work: Path, records: int, keys_per_file: int) -> dict[str, Any]:
    """Plan of records of which the store has every second one, in files of so many keys."""
    make_directories(inputs, work)
    write("sequences", inputs, work, work, "--records", str(records), "--keys-per-file", str(keys_per_file))
    (work / "any.fasta").touch()
    rows = "".join(f"sample{number:02d}\t{work / 'any.fasta'}\n" for number in range(SAMPLES))
    (work / "samples.tsv").write_text(f"sample\tfasta\n{rows}")
    cost = plan(work, records - records // 2)
    stored = {"stored": records // 2, "store_files": -(-(records // 2) // keys_per_file)}
    return {"records": records} | stored | {"shards": count_shards(work)} | figures({"plan": cost})


def measure_table(inputs: Path, work: Path, records: int, keys_per_file: int) -> dict[str, Any]:
    """A feature table whose sequences lie in the store in random order, made five times; figures are of the median."""
    make_directories(inputs, work)
    write("table", inputs, work, work, "--records", str(records), "--keys-per-file", str(keys_per_file))
    table = work / "table.parquet"
    features = [PYTHON, ROOT / "scripts" / "features.py", "--catalog", work / "catalog.parquet", "--model", MODEL]
    features += ["--spec", json.dumps(SPEC), "--descriptor", work / "models" / f"{MODEL}.json"]
    features += ["--store", work / "store", "--table", table]
    costs = sorted((run(features, work / "features.log") for _ in range(5)), key=lambda cost: cost.seconds)
    cost = costs[2]
    write("check", inputs, table, work, "--records", str(records))
    size = 4 * EMBED_DIM * records
    rate = {"vector_bytes": size, "bytes_per_second": round(size / cost.seconds)}
    rate["each_seconds"] = [round(cost.seconds, 2) for cost in costs]
    return {"records": records, "store_files": -(-records // keys_per_file)} | rate | figures({"features": cost})


def measure_samples(inputs: Path, work: Path, samples: int) -> dict[str, Any]:
    """Runs of the workflow over samples of three proteins each: the first, and one in which nothing is to be done."""
    work.mkdir(parents=True, exist_ok=True)
    lines = (inputs / "proteins.fasta").read_text().splitlines()
    rows = ["sample\tfasta"]
    for sample in range(samples):
        first = 3 * sample % (len(lines) // 2 - 2)
        (work / f"s{sample}.fasta").write_text("\n".join(lines[2 * first : 2 * first + 6]) + "\n")
        rows.append(f"s{sample}\ts{sample}.fasta")
    (work / "samples.tsv").write_text("\n".join(rows) + "\n")
    weights = json.loads((inputs / "descriptor.json").read_text())["files"][0]
    model = {"weights": weights, "long_sequences": "truncate"}
    config = {"samples": "samples.tsv", "models": {MODEL: model}, "workers": {"max_jobs": 1, "gpus_per_job": 0}}
    (work / "config.yaml").write_text(json.dumps(config))
    command = [Path(PYTHON).with_name("snakemake"), "--snakefile", ROOT / "Snakefile"]
    command += ["--profile", ROOT / "profiles" / "local", "--configfile", "config.yaml"]
    costs = {name: run(command, work / f"{name}.log", work) for name in ("first", "again")}
    assert "Nothing to be done" in (work / "again.log").read_text()
    return {"samples": samples} | figures(costs)


def make_directories(inputs: Path, work: Path) -> None:
    (work / "models").mkdir(parents=True)
    (work / "models" / f"{MODEL}.json").write_text((inputs / "descriptor.json").read_text())


def write(what: str, inputs: Path, target: Path, work: Path, *options: str) -> None:
    """Write inputs by this file as a program of its own."""
    run([PYTHON, HERE / "scale.py", what, inputs, target, *options], work / f"{what}.log")


def plan(work: Path, missing: int) -> Cost:
    """Run the plan, and check how many sequences it has found missing."""
    command = [PYTHON, ROOT / "scripts" / "plan.py", "--models", json.dumps({MODEL: SPEC})]
    command += ["--results", work, "--samples", work / "samples.tsv", "--store", work / "store"]
    command += ["--target-minutes", "5", "--max-jobs", "8", "--gpus-per-job", "0"]
    cost = run(command, work / "plan.log")
    planned = sum(shard["sequences"] for shard in planned_shards(work))
    assert planned == missing, f"{planned} of {missing} missing sequences were planned"
    return cost


def planned_shards(work: Path) -> Iterator[dict[str, Any]]:
    for job in (work / "plan" / "jobs").iterdir():
        yield from json.loads(job.read_text())["shards"]


def count_shards(work: Path) -> int:
    return sum(1 for _ in planned_shards(work))


def figures(costs: dict[str, Cost]) -> dict[str, Any]:
    return {
        "seconds": {name: round(cost.seconds, 2) for name, cost in costs.items()},
        "cpu_seconds": {name: round(cost.cpu_seconds, 2) for name, cost in costs.items()},
        "peak_bytes": {name: cost.peak_bytes for name, cost in costs.items()},
        "others": {name: cost.others for name, cost in costs.items()},
        "total_seconds": round(sum(cost.seconds for cost in costs.values()), 2),
        "highest_peak_bytes": max(cost.peak_bytes for cost in costs.values()),
    }


def synthetic(inputs: Path, records: int, longest: int | None = None) -> Iterator[tuple[Any, bytes]]:
    """(lengths int64 [batch], residues laid end to end) of the synthetic records, batch by batch."""
    import numpy as np

    random = np.random.default_rng(SEED)
    known = np.clip(np.loadtxt(inputs / "lengths.txt", dtype=np.int64), SHORTEST, longest)
    letters = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", dtype=np.uint8)
    for first in range(0, records, BATCH):
        lengths = random.choice(known, min(BATCH, records - first))
        yield lengths, letters[random.integers(0, 20, lengths.sum(), dtype=np.uint8)].tobytes()


def write_fasta(inputs: Path, fasta: Path, records: int) -> None:
    """Write the synthetic records, in lines of 60 residues as UniProt does."""
    number = 0
    with fasta.open("wb") as file:
        for lengths, residues in synthetic(inputs, records):
            begin = 0
            for length in lengths.tolist():
                file.write(b">synthetic%09d a random protein\n" % number)
                for line in range(begin, begin + length, 60):
                    file.write(residues[line : min(line + 60, begin + length)] + b"\n")
                begin += length
                number += 1


def write_sequences(inputs: Path, work: Path, records: int, keys_per_file: int) -> None:
    """Write samples' files of sequences, and a store that has every second one.

    The vectors in the store are short ones, since the plan does not read them; a file's keys are consecutive ones.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from esmflow.inputs.catalog import SEQUENCES
    from esmflow.sealed import seal

    random = np.random.default_rng(SEED)
    (work / "sequences").mkdir()
    stored: list[bytes] = []
    files = 0
    writers = [
        pq.ParquetWriter(work / "sequences" / f"sample{number:02d}.parquet", SEQUENCES, compression="zstd")
        for number in range(SAMPLES)
    ]
    for number, (lengths, residues) in enumerate(synthetic(inputs, records, LONGEST)):
        keys = np.frombuffer(random.bytes(32 * len(lengths)), "V32")
        offsets = pa.py_buffer(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        columns = [
            pa.array(keys.tolist(), pa.binary(32)),
            pa.array(lengths.astype(np.int32)),
            pa.Array.from_buffers(pa.binary(), len(lengths), [None, offsets, pa.py_buffer(residues)]),
        ]
        writers[number * BATCH * SAMPLES // records].write_batch(pa.record_batch(columns, SEQUENCES))
        stored += keys[1::2].tolist()
        while len(stored) >= keys_per_file or (stored and (number + 1) * BATCH >= records):
            commit_keys(inputs, work, f"{files:08x}", stored[:keys_per_file], random.random((keys_per_file, 4)))
            del stored[:keys_per_file]
            files += 1
    for number, writer in enumerate(writers):
        writer.close()
        seal(work / "sequences" / f"sample{number:02d}.parquet")


def commit_keys(inputs: Path, work: Path, name: str, keys: list[bytes], vectors: Any) -> None:
    """Commit keys and their vectors to the store, as a worker would."""
    import numpy as np
    import pyarrow as pa
    from esmflow.planned_model import Descriptor, Space
    from esmflow.representation import Output
    from esmflow.store.store import Store, commit
    from esmflow.treatment import WHOLE

    descriptor = Descriptor.load(inputs / "descriptor.json")
    path = Store(work / "store").path(Space(descriptor.sha256, WHOLE, "fp32"), name)
    values = {Output(descriptor.architecture.layers, "mean"): vectors[: len(keys)].astype(np.float32)}
    metadata = {"model": MODEL, "precision": "fp32", "attention": "sdpa"}
    commit(path, pa.array(keys, pa.binary(32)), [None] * len(keys), values, metadata)


def write_table_inputs(inputs: Path, work: Path, records: int, keys_per_file: int) -> None:
    """Write a catalog, and a store with the vectors, of which the first number is the record's."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from esmflow.inputs.catalog import CATALOG
    from esmflow.sealed import seal

    random = np.random.default_rng(SEED)
    keys = np.frombuffer(random.bytes(32 * records), "V32")
    columns = {
        "index": np.arange(records),
        "id": [f"synthetic{number:09d}" for number in range(records)],
        "description": ["a random protein"] * records,
        "length": np.full(records, 350, np.int32),
        "key": pa.array(keys.tolist(), pa.binary(32)),
        "status": ["valid"] * records,
        "reason": [None] * records,
        "flags": [""] * records,
    }
    pq.write_table(pa.table(columns, CATALOG), work / "catalog.parquet", compression="zstd", row_group_size=50_000)
    seal(work / "catalog.parquet")
    order = random.permutation(records)
    for first in range(0, records, keys_per_file):
        own = order[first : first + keys_per_file]
        vectors = random.standard_normal((len(own), EMBED_DIM), np.float32)
        vectors[:, 0] = own
        commit_keys(inputs, work, f"{first:08x}", keys[own].tolist(), vectors)


def check_table(table: Path, records: int) -> None:
    """Check that each row is its record's."""
    import numpy as np
    import pyarrow.parquet as pq

    done = 0
    for batch in pq.ParquetFile(table).iter_batches(BATCH):
        numbers = np.arange(done, done + len(batch))
        assert batch["id"].to_pylist() == [f"synthetic{number:09d}" for number in numbers]
        vectors = batch["embedding"].flatten().to_numpy().reshape(-1, EMBED_DIM)
        assert np.array_equal(vectors[:, 0], numbers)
        done += len(batch)
    assert done == records, f"{done} of {records} records are in the table"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["fasta", "sequences", "table", "check"])
    parser.add_argument("inputs", type=Path, help="directory that inputs.py has written")
    parser.add_argument("target", type=Path)
    parser.add_argument("--records", type=int, required=True)
    parser.add_argument("--keys-per-file", type=int, help="of the store")
    options = parser.parse_args()
    if options.what == "fasta":
        write_fasta(options.inputs, options.target, options.records)
    elif options.what == "sequences":
        write_sequences(options.inputs, options.target, options.records, options.keys_per_file)
    elif options.what == "table":
        write_table_inputs(options.inputs, options.target, options.records, options.keys_per_file)
    else:
        check_table(options.target, options.records)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "scripts"))
    main()
