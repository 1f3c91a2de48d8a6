"""Outputs follow the config, whatever Snakemake remembers: changes of the config times what it remembers.

With FULL_MATRIX set in the environment, all cells; else some of them.
"""

import os
import random
import shutil
import subprocess
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import reference
import yaml
from workflow import ENVIRONMENT, Workspace, plain, worst_error, written_times

MAX_LENGTH = 50
LAYERS = 3
draw = random.Random(11)
LENGTHS = [20, 25, 30, 35, 40, 45, 60, 70, 80, 90]
PROTEINS = [plain(f"p{n}", "".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=n))) for n in LENGTHS]
SAMPLES = {"a": PROTEINS[:7], "b": PROTEINS[3:9]}
#: Unique proteins of both samples, and those of them that are longer than MAX_LENGTH.
ALL, LONG = 9, 3
YEARS_AGO = 1e9

Config = dict[str, Any]
Change = Callable[[Path, Config], None]


@pytest.fixture(scope="module")
def done(once: Callable[[str, Callable[[Path], None]], Path]) -> Workspace:
    """Two samples that share proteins, embedded with a tiny model."""

    def run(directory: Path) -> None:
        work = Workspace(directory)
        reference.tiny_esm2(directory / "one.pt")
        reference.tiny_esm2(directory / "two.pt", seed=1)
        work.write_samples([(name, work.write_fasta(f"{name}.fasta", own)) for name, own in SAMPLES.items()])
        work.write_config({"one": {"weights": "one.pt", "long_sequences": "truncate", "max_length": MAX_LENGTH}})
        work.run()

    return Workspace(once("config_followed", run))


def of_model(**values: Any) -> Change:
    return lambda root, config: config["models"]["one"].update(values)


def add_model(root: Path, config: Config) -> None:
    config["models"]["two"] = config["models"]["one"] | {"weights": "two.pt"}


def samples(*names: str) -> Change:
    """Change the sheet to these; `c` has a protein that is in no other."""

    def change(root: Path, config: Config) -> None:
        Workspace(root).write_fasta("c.fasta", PROTEINS[8:])
        Workspace(root).write_samples([(name, f"{name}.fasta") for name in names])

    return change


def edit(root: Path, config: Config) -> None:
    """Another protein in place of the first of sample a, in a file that is older than what was made of it."""
    path = root / "a.fasta"
    Workspace(root).write_fasta(path.name, [plain("new", "MKV" + PROTEINS[0].residues), *SAMPLES["a"][1:]])
    os.utime(path, (YEARS_AGO, YEARS_AGO))


def move(root: Path, config: Config) -> None:
    (root / "elsewhere").mkdir()
    (root / "a.fasta").rename(root / "elsewhere/z.fasta")
    Workspace(root).write_samples([("a", "elsewhere/z.fasta"), ("b", "b.fasta")])


def swap(root: Path, config: Config) -> None:
    """The FASTA file of another sample under the name of this, with its time."""
    (root / "a.fasta").rename(root / "x")
    (root / "b.fasta").rename(root / "a.fasta")
    (root / "x").rename(root / "b.fasta")


#: Each change, and how many sequences it has to embed.
CHANGES: dict[str, tuple[Change, int]] = {
    "nothing": (of_model(), 0),
    "layer": (of_model(layers=[1, -1]), ALL),
    "representation": (of_model(representations=["mean", "max"]), ALL),
    "model": (add_model, ALL),
    "weights": (of_model(weights="two.pt"), ALL),
    "length": (of_model(max_length=MAX_LENGTH - 1), LONG),
    "policy": (of_model(long_sequences="skip"), 0),
    "precision": (of_model(precision="fp32"), ALL),
    "sample added": (samples("a", "b", "c"), 1),
    "sample removed": (samples("b"), 0),
    "sample edited": (edit, 1),
    "sample moved": (move, 0),
    "samples swapped": (swap, 0),
}


class Times:
    """Snakemake remembers all, and is told to go by the times of files alone."""

    arguments = ("--rerun-triggers", "mtime")

    def __init__(self, work: Workspace, scratch: Path) -> None:
        self.work = work

    def run(self) -> str:
        result = self.work.run(*self.arguments)
        return result.stdout + result.stderr


class All(Times):
    """Snakemake remembers all."""

    arguments = ()


class Nothing(Times):
    """Snakemake's memory is lost, and it is to keep none."""

    arguments = ("--drop-metadata",)

    def __init__(self, work: Workspace, scratch: Path) -> None:
        super().__init__(work, scratch)
        shutil.rmtree(work.root / ".snakemake")


class Elsewhere(Times):
    """Snakemake is run in another directory, where it has no memory."""

    def __init__(self, work: Workspace, scratch: Path) -> None:
        super().__init__(work, scratch)
        self.directory = scratch / "elsewhere"
        self.directory.mkdir()

    def run(self) -> str:
        config = yaml.safe_load((self.work.root / "config.yaml").read_text())
        for model in config["models"].values():
            model["weights"] = str(self.work.root / model["weights"])
        paths = {"samples": "samples.tsv", "results": "results", "store": "store"}
        config |= {key: str(self.work.root / path) for key, path in paths.items()}
        (self.directory / "config.yaml").write_text(yaml.safe_dump(config))
        command = self.work.command()
        result = subprocess.run(
            command, cwd=self.directory, capture_output=True, text=True, check=False, env=ENVIRONMENT
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr


class Copied(Nothing):
    """The run that is to go on was cut short after its plan, and copied without the times of its files."""

    arguments = ()

    def __init__(self, work: Workspace, scratch: Path) -> None:
        super().__init__(work, scratch)
        self.planned = False

    def run(self) -> str:
        if not self.planned:
            self.work.run("--", "preflight")
            shutil.rmtree(self.work.root / ".snakemake")
            for path in self.work.root.rglob("*"):
                os.utime(path, (YEARS_AGO, YEARS_AGO))
            self.planned = True
        return super().run()


MEMORIES = {"all": All, "times": Times, "nothing": Nothing, "elsewhere": Elsewhere, "copied": Copied}
CELLS = list(product(CHANGES, MEMORIES))
SOME = [
    ("layer", "nothing"),
    ("length", "times"),
    ("sample edited", "copied"),
    ("samples swapped", "elsewhere"),
]


def assert_right(work: Workspace) -> None:
    """Every table that the config asks for has fair-esm's vectors of the records of its FASTA file."""
    config = yaml.safe_load((work.root / "config.yaml").read_text())
    rows = [line.split("\t") for line in (work.root / "samples.tsv").read_text().splitlines()[1:]]
    for name, model in config["models"].items():
        trunk = reference.tiny_esm2(work.root / "reference.pt", seed=int(model["weights"] == "two.pt"))
        for sample, fasta in rows:
            lines = (work.root / fasta).read_text().splitlines()
            records = [
                (header[1:], residues)
                for header, residues in zip(lines[::2], lines[1::2], strict=True)
                if model["long_sequences"] != "skip" or len(residues) <= model["max_length"]
            ]
            for layer, kind in product(model.get("layers", [-1]), model.get("representations", ["mean"])):
                layer %= LAYERS + 1
                table = work.table(sample, name, f"layer{layer}.{kind}")
                assert list(zip(table["id"], table["length"], strict=True)) == [(r, len(s)) for r, s in records]
                seen = [residues[: model["max_length"]] for _, residues in records]
                assert worst_error(table, seen, lambda s, t=trunk: reference.represent(t, s), layer, kind) <= 1e-5
            status = work.status(sample)
            assert status["id"].to_list() == [header[1:] for header in lines[::2]]
            assert (status["status"] == "embedded").sum() == len(records)


def embedded(work: Workspace) -> int:
    """How many sequences all runs up to now have embedded, by what was committed."""
    return sum(receipt["sequences_computed"] for receipt in work.receipts().values())


@pytest.mark.parametrize(("change", "memory"), CELLS if "FULL_MATRIX" in os.environ else SOME)
def test_tables_follow_the_config_whatever_snakemake_remembers(
    done: Workspace, tmp_path: Path, change: str, memory: str
) -> None:
    work = done.copy(tmp_path / "work")
    apply, expected = CHANGES[change]
    before = embedded(work)
    snakemake = MEMORIES[memory](work, tmp_path)
    work.change_config(lambda config: apply(work.root, config))
    said = snakemake.run()
    assert embedded(work) - before == expected
    assert_right(work)
    tables = written_times(work.table_files())
    if change == "nothing" and memory not in ("elsewhere", "copied"):
        assert "Nothing to be done" in said
    assert "Nothing to be done" in snakemake.run()
    assert written_times(work.table_files()) == tables


def test_a_config_that_comes_back_has_its_tables_again_though_their_inputs_are_older(
    done: Workspace, tmp_path: Path
) -> None:
    work = done.copy(tmp_path / "work")
    before = embedded(work)
    for length in (MAX_LENGTH - 1, MAX_LENGTH):
        work.change_config(lambda config, n=length: config["models"]["one"].update(max_length=n))
        work.run("--rerun-triggers", "mtime")
        assert_right(work)
    assert embedded(work) - before == LONG


def test_a_dry_run_tells_what_will_be_done_and_writes_nothing(done: Workspace, tmp_path: Path) -> None:
    work = done.copy(tmp_path / "work")
    shutil.rmtree(work.root / ".snakemake")
    work.change_config(lambda config: config["models"]["one"].update(max_length=MAX_LENGTH - 1))
    files = written_times(work.files("results"))
    result = work.run("--dry-run", "--rerun-triggers", "mtime")
    assert "checkpoint plan" in result.stdout + result.stderr
    assert written_times(work.files("results")) == files
