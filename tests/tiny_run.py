"""A small finished run with a tiny model, for tests that change something and run again."""

import random
from itertools import product
from pathlib import Path
from typing import Any

import reference
import yaml
from workflow import Workspace, plain, worst_error, written_times

MAX_LENGTH = 50
LAYERS = 3
_draw = random.Random(11)
_LENGTHS = [20, 25, 30, 35, 40, 45, 60, 70, 80, 90]
PROTEINS = [plain(f"p{n}", "".join(_draw.choices("ACDEFGHIKLMNPQRSTVWY", k=n))) for n in _LENGTHS]
#: They share proteins.
SAMPLES = {"a": PROTEINS[:7], "b": PROTEINS[3:9]}
#: The unique proteins of both samples.
UNIQUE = 9
MODEL = {"weights": "one.pt", "long_sequences": "truncate", "max_length": MAX_LENGTH}
TABLE = f"layer{LAYERS}.mean"


def run(directory: Path) -> None:
    """Both samples with the model `one`, a few sequences a shard; `two.pt` has weights of another."""
    work = Workspace(directory)
    for seed, name in enumerate(("one", "two")):
        reference.tiny_esm2(directory / f"{name}.pt", seed=seed)
    work.write_samples([(name, work.write_fasta(f"{name}.fasta", own)) for name, own in SAMPLES.items()])
    work.write_config({"one": MODEL}, sharding={"target_minutes": 1e-6})
    work.run()


def tables(work: Workspace) -> dict[str, tuple[int, int]]:
    """Each table, such as `a/one/layer3.mean`, with what tells that it was not written again."""
    top = work.root / "results" / "features"
    times = written_times(work.table_files())
    return {str(path.relative_to(top).with_suffix("")): written for path, written in times.items()}


def receipts(work: Workspace) -> dict[Path, tuple[int, int]]:
    return written_times(work.files("results/receipts"))


def computed(work: Workspace, before: dict[Path, tuple[int, int]]) -> int:
    """The number of sequences embedded, by the receipts that are not among those of before."""
    found, written = work.receipts(), receipts(work)
    return sum(found[path.stem]["sequences_computed"] for path in written if written[path] != before.get(path))


def read_records(path: Path, model: dict[str, Any]) -> list[tuple[str, str]]:
    """The ID and the residues of each record of a FASTA file that a model does not skip."""
    lines = path.read_text().splitlines()
    records = [(header[1:], residues) for header, residues in zip(lines[::2], lines[1::2], strict=True)]
    longest = model["max_length"] if model["long_sequences"] == "skip" else float("inf")
    return [(name, residues) for name, residues in records if len(residues) <= longest]


def fasta_files(work: Workspace) -> dict[str, Path]:
    """The FASTA file of each sample of the sheet."""
    sheet = [line.split("\t") for line in (work.root / "samples.tsv").read_text().splitlines()[1:]]
    return {sample: work.root / fasta for sample, fasta in sheet}


def assert_right(work: Workspace) -> None:
    """Every table that the config asks for has fair-esm's vectors of the records of its FASTA file."""
    config = yaml.safe_load((work.root / "config.yaml").read_text())
    for name, model in config["models"].items():
        trunk = reference.tiny_esm2(work.root / "reference.pt", seed=int(model["weights"] == "two.pt"))
        bound = 3e-2 if model.get("precision") == "bf16" else 1e-3 if config.get("vectors") == "float16" else 1e-5
        cut = None if model["long_sequences"] == "full" else model["max_length"]
        for sample, fasta in fasta_files(work).items():
            records = read_records(fasta, model)
            for layer, kind in product(model.get("layers", [-1]), model.get("representations", ["mean"])):
                layer %= LAYERS + 1
                table = work.table(sample, name, f"layer{layer}.{kind}")
                assert list(zip(table["id"], table["length"], strict=True)) == [(r, len(s)) for r, s in records]
                seen = [residues[:cut] for _, residues in records]
                assert worst_error(table, seen, lambda s, t=trunk: reference.represent(t, s), layer, kind) <= bound
    for sample, fasta in fasta_files(work).items():
        status = work.status(sample)
        assert status["id"].to_list() == [line[1:] for line in fasta.read_text().splitlines()[::2]]
        by_every_model = min(len(read_records(fasta, model)) for model in config["models"].values())
        assert (status["status"] == "embedded").sum() == by_every_model
