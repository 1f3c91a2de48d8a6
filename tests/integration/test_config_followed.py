"""Whatever a user changes between two runs, and whatever Snakemake remembers: exactly the missing work is done.

With FULL_SIZE set in the environment every change meets every memory; else each change is tried once, some together.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_run import LONG, MAX_LENGTH, MODEL, PROTEINS, SAMPLES, TABLE, UNIQUE, assert_right, computed, receipts, tables
from workflow import ENVIRONMENT, FULL_SIZE, ROOT, Workspace, plain, written_times

YEARS_AGO, IN_YEARS = 1e9, 4e9
BOTH = (f"a/one/{TABLE}", f"b/one/{TABLE}")


@dataclass(frozen=True)
class Change:
    """What a user does to a finished run, and what the same command has to do then."""

    apply: Callable[[Workspace], Workspace | None]
    """Gives the workspace if another version of the code is to run in it."""
    computed: int = 0
    """The sequences that it embeds."""
    rewritten: tuple[str, ...] = ()
    """The tables that it makes."""


def of_config(change: Callable[[dict[str, Any]], None]) -> Callable[[Workspace], None]:
    return lambda work: work.change_config(change)


def of_model(**values: Any) -> Callable[[Workspace], None]:
    return of_config(lambda config: config["models"]["one"].update(values))


def add_model(name: str, weights: str) -> Callable[[Workspace], None]:
    """Add a model that is like the first but for its weights."""

    return of_config(lambda config: config["models"].update({name: MODEL | {"weights": weights}}))


def speed(config: dict[str, Any]) -> None:
    config["workers"] |= {"max_jobs": 5, "tokens_per_pack": 500}
    config["sharding"] = {"target_minutes": 3}
    config["models"]["one"]["attention"] = "sdpa"


def samples(*names: str) -> Callable[[Workspace], None]:
    """Change the sheet to these; `c` has proteins of the others and one of its own."""

    def change(work: Workspace) -> None:
        work.write_fasta("c.fasta", PROTEINS[7:])
        work.write_samples([(name, f"{name}.fasta") for name in names])

    return change


def edit(time: float | None = None) -> Callable[[Workspace], None]:
    """Another protein in place of the first of sample a, in a file that then has that time of change."""

    def change(work: Workspace) -> None:
        work.write_fasta("a.fasta", [plain("new", "MKV" + PROTEINS[0].residues), *SAMPLES["a"][1:]])
        if time is not None:
            os.utime(work.root / "a.fasta", (time, time))

    return change


def touch(work: Workspace) -> None:
    os.utime(work.root / "a.fasta", (IN_YEARS, IN_YEARS))


def rename(work: Workspace) -> None:
    """Sample a in another order, under other IDs."""
    work.write_fasta("a.fasta", [plain(f"new_{entry.id}", entry.residues) for entry in reversed(SAMPLES["a"])])


def move(work: Workspace) -> None:
    (work.root / "elsewhere").mkdir()
    (work.root / "a.fasta").rename(work.root / "elsewhere/z.fasta")
    work.write_samples([("a", "elsewhere/z.fasta"), ("b", "b.fasta")])


def swap(work: Workspace) -> None:
    """The FASTA file of another sample under the name of this, with its time."""
    (work.root / "a.fasta").rename(work.root / "x")
    (work.root / "b.fasta").rename(work.root / "a.fasta")
    (work.root / "x").rename(work.root / "b.fasta")


def remove(*paths: str) -> Callable[[Workspace], None]:
    def change(work: Workspace) -> None:
        for path in paths:
            shutil.rmtree(work.root / path)

    return change


def upgrade(file: str, old: str, new: str) -> Callable[[Workspace], Workspace]:
    """Another version of the code, elsewhere."""

    def change(work: Workspace) -> Workspace:
        project = work.root.parent / "upgraded"
        for part in ("rules", "scripts", "config", "envs"):
            shutil.copytree(ROOT / part, project / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "Snakefile", project)
        text = (project / "scripts/esmflow" / file).read_text()
        assert old in text
        (project / "scripts/esmflow" / file).write_text(text.replace(old, new))
        return replace(work, project=project)

    return change


NUMERICS = upgrade("planned_model.py", "NUMERICS_VERSION = ", "NUMERICS_VERSION = 1")
CLEANING = upgrade("planned_model.py", "CLEANING_VERSION = ", "CLEANING_VERSION = 1")
CHANGES = {
    "nothing": Change(lambda work: None),
    "speed": Change(of_config(speed)),
    "touched": Change(touch),
    "version": Change(upgrade("__init__.py", '__version__ = "', '__version__ = "9.')),
    "store deleted": Change(remove("store")),
    "layer": Change(of_model(layers=[1, -1]), UNIQUE, ("a/one/layer1.mean", "b/one/layer1.mean")),
    "representation": Change(
        of_model(representations=["mean", "max"]), UNIQUE, ("a/one/layer3.max", "b/one/layer3.max")
    ),
    "model": Change(add_model("two", "two.pt"), UNIQUE, (f"a/two/{TABLE}", f"b/two/{TABLE}")),
    "same weights": Change(add_model("again", "one.pt"), 0, (f"a/again/{TABLE}", f"b/again/{TABLE}")),
    "weights": Change(of_model(weights="two.pt"), UNIQUE, BOTH),
    "length": Change(of_model(max_length=MAX_LENGTH - 1), LONG, BOTH),
    "policy full": Change(of_model(long_sequences="full"), LONG, BOTH),
    "policy skip": Change(of_model(long_sequences="skip"), 0, BOTH),
    "precision": Change(of_model(precision="bf16"), UNIQUE, BOTH),
    "precision by its name": Change(of_model(precision="fp32"), 0, BOTH),
    "vectors": Change(of_config(lambda config: config.update(vectors="float16")), UNIQUE, BOTH),
    "sample added": Change(samples("a", "b", "c"), 1, (f"c/one/{TABLE}",)),
    "sample removed": Change(samples("b")),
    "edited": Change(edit(), 1, BOTH[:1]),
    "replaced by an older": Change(edit(YEARS_AGO), 1, BOTH[:1]),
    "renamed": Change(rename, 0, BOTH[:1]),
    "moved": Change(move),
    "swapped": Change(swap, 0, BOTH),
    "results deleted": Change(remove("results"), 0, BOTH),
    "results and store deleted": Change(remove("results", "store"), UNIQUE, BOTH),
    "numerics": Change(NUMERICS, UNIQUE, BOTH),
    "cleaning": Change(CLEANING, UNIQUE, BOTH),
}


class Times:
    """Snakemake remembers all, and is told to go by the times of files alone."""

    arguments = ("--rerun-triggers", "mtime")

    def __init__(self, work: Workspace, scratch: Path) -> None:
        self.work = work

    def prepare(self) -> None:
        """What comes between the change and the run."""

    def run(self) -> str:
        result = self.work.run(*self.arguments)
        return result.stdout + result.stderr


class All(Times):
    """Snakemake remembers all."""

    arguments = ()


class Nothing(Times):
    """Snakemake's memory is lost, and it is to keep none."""

    arguments = ("--drop-metadata",)

    def prepare(self) -> None:
        shutil.rmtree(self.work.root / ".snakemake")


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

    def prepare(self) -> None:
        super().prepare()
        self.work.run("--", "preflight")
        super().prepare()
        for path in self.work.root.rglob("*"):
            os.utime(path, (YEARS_AGO, YEARS_AGO))


MEMORIES = {"all": All, "times": Times, "nothing": Nothing, "elsewhere": Elsewhere, "copied": Copied}
EVERY = [((change,), memory) for change, memory in product(CHANGES, MEMORIES)]
#: Each change once, and each memory several times.
SOME = [
    (("nothing",), "all"),
    (("speed", "touched", "version", "sample removed"), "all"),
    (("store deleted",), "times"),
    (("layer", "model", "same weights"), "nothing"),
    (("weights",), "times"),
    (("length",), "times"),
    (("policy full",), "elsewhere"),
    (("policy skip", "precision by its name", "moved"), "all"),
    (("precision",), "copied"),
    (("vectors",), "times"),
    (("edited", "sample added"), "all"),
    (("replaced by an older",), "copied"),
    (("renamed", "representation"), "nothing"),
    (("swapped",), "elsewhere"),
    (("results deleted",), "all"),
    (("results and store deleted",), "all"),
    (("numerics",), "all"),
    (("cleaning",), "times"),
]


def test_each_change_is_tried() -> None:
    assert sorted(name for names, _ in SOME for name in names) == sorted(CHANGES)


@pytest.mark.parametrize(("changes", "memory"), EVERY if FULL_SIZE else SOME, ids=str)
def test_a_change_computes_exactly_what_is_missing(
    tiny_run: Workspace, tmp_path: Path, changes: tuple[str, ...], memory: str
) -> None:
    work = tiny_run.copy(tmp_path / "work")
    expected = [CHANGES[name] for name in changes]
    for change in expected:
        work = change.apply(work) or work
    snakemake = MEMORIES[memory](work, tmp_path)
    snakemake.prepare()
    earlier, there, store = receipts(work), tables(work), written_times(work.store_files())
    said = snakemake.run()
    assert computed(work, earlier) == sum(change.computed for change in expected)
    made = {name for name, times in tables(work).items() if times != there.get(name)}
    assert made == {name for change in expected for name in change.rewritten}
    assert written_times(store) == store
    assert_right(work)
    if changes == ("nothing",) and memory not in ("elsewhere", "copied"):
        assert "Nothing to be done" in said
    if memory != "all":
        there = tables(work)
        assert "Nothing to be done" in snakemake.run()
        assert tables(work) == there


def test_a_config_that_comes_back_has_its_tables_again_though_their_inputs_are_older(
    tiny_run: Workspace, tmp_path: Path
) -> None:
    work = tiny_run.copy(tmp_path / "work")
    earlier = receipts(work)
    for length in (MAX_LENGTH - 1, MAX_LENGTH):
        work.change_config(lambda config, n=length: config["models"]["one"].update(max_length=n))
        work.run("--rerun-triggers", "mtime")
        assert_right(work)
    assert computed(work, earlier) == LONG


def test_a_dry_run_tells_what_will_be_done_and_writes_nothing(tiny_run: Workspace, tmp_path: Path) -> None:
    work = tiny_run.copy(tmp_path / "work")
    shutil.rmtree(work.root / ".snakemake")
    work.change_config(lambda config: config["models"]["one"].update(max_length=MAX_LENGTH - 1))
    files = written_times(work.files("results"))
    result = work.run("--dry-run", "--rerun-triggers", "mtime")
    assert "checkpoint plan" in result.stdout + result.stderr
    assert written_times(work.files("results")) == files
