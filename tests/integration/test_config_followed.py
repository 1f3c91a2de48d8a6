"""Whatever a user changes between two runs, and whatever Snakemake remembers: exactly the missing work is done.

With FULL_SIZE set in the environment every change meets every memory; else each change is tried once, together with
others that concern other samples or other models.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from esmflow.planned_model import Descriptor
from esmflow.results import Results
from tiny_run import (
    MAX_LENGTH,
    MODEL,
    PROTEINS,
    SAMPLES,
    TABLE,
    UNIQUE,
    assert_right,
    computed,
    fasta_files,
    receipts,
    tables,
)
from workflow import FULL_SIZE, ROOT, Workspace, plain, written_times

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


def of_model(name: str, values: dict[str, Any]) -> Callable[[Workspace], None]:
    return of_config(lambda config: config["models"][name].update(values))


def add_models(*names: str, weights: str = "one.pt") -> Callable[[Workspace], None]:
    """Add models that are like the first but for their weights."""

    return of_config(lambda config: config["models"].update({name: MODEL | {"weights": weights} for name in names}))


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
    os.utime(work.root / "b.fasta", (IN_YEARS, IN_YEARS))


def rename(work: Workspace) -> None:
    """Sample b in another order, under other IDs."""
    work.write_fasta("b.fasta", [plain(f"new_{entry.id}", entry.residues) for entry in reversed(SAMPLES["b"])])


def move(work: Workspace) -> None:
    (work.root / "elsewhere").mkdir()
    (work.root / "b.fasta").rename(work.root / "elsewhere/z.fasta")
    work.write_samples([("a", "a.fasta"), ("b", "elsewhere/z.fasta")])


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
#: What can be changed of a model, the fewest residues of the proteins that this embeds, and the table of each sample
#: that it makes.
NONE, TOO_LONG, ALL = 1000, MAX_LENGTH + 1, 0
OF_A_MODEL: dict[str, tuple[dict[str, Any], int, str]] = {
    "layer": ({"layers": [1, -1]}, ALL, "layer1.mean"),
    "representation": ({"representations": ["mean", "max"]}, ALL, "layer3.max"),
    "weights": ({"weights": "two.pt"}, ALL, TABLE),
    "length": ({"max_length": MAX_LENGTH - 1}, TOO_LONG, TABLE),
    "policy-full": ({"long_sequences": "full"}, TOO_LONG, TABLE),
    "policy-skip": ({"long_sequences": "skip"}, NONE, TABLE),
    "precision": ({"precision": "bf16"}, ALL, TABLE),
    "precision-by-its-name": ({"precision": "fp32"}, NONE, TABLE),
}


def embedded(shortest: int, *samples: str) -> int:
    """How many proteins of samples have so many residues."""
    proteins = {entry.residues for sample in samples for entry in SAMPLES[sample]}
    return sum(len(protein) >= shortest for protein in proteins)


CHANGES = {
    "nothing": Change(lambda work: None),
    "speed": Change(of_config(speed)),
    "touched": Change(touch),
    "version": Change(upgrade("__init__.py", '__version__ = "', '__version__ = "9.')),
    "store deleted": Change(remove("store")),
    "model": Change(add_models("two", weights="two.pt"), UNIQUE, (f"a/two/{TABLE}", f"b/two/{TABLE}")),
    "same weights": Change(add_models("again"), 0, (f"a/again/{TABLE}", f"b/again/{TABLE}")),
    "vectors": Change(of_config(lambda config: config.update(vectors="float16")), UNIQUE, BOTH),
    "sample added": Change(samples("a", "b", "c"), 1, (f"c/one/{TABLE}",)),
    "sample removed": Change(samples("b")),
    "edited": Change(edit(), 1, BOTH[:1]),
    "replaced by an older": Change(edit(YEARS_AGO), 1, BOTH[:1]),
    "renamed": Change(rename, 0, BOTH[1:]),
    "moved": Change(move, 0, BOTH[1:]),
    "swapped": Change(swap, 0, BOTH),
    "results deleted": Change(remove("results"), 0, BOTH),
    "results and store deleted": Change(remove("results", "store"), UNIQUE, BOTH),
    "numerics": Change(NUMERICS, UNIQUE, BOTH),
    "cleaning": Change(CLEANING, UNIQUE, BOTH),
} | {
    name: Change(of_model("one", values), embedded(shortest, "a", "b"), (f"a/one/{table}", f"b/one/{table}"))
    for name, (values, shortest, table) in OF_A_MODEL.items()
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
        result = Workspace(self.directory, self.work.project).run()
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
#: Each change once, and each memory; what concerns models is changed in another test.
SOME = [
    (("nothing", "speed", "touched", "version", "store deleted"), "all"),
    (("edited", "renamed", "sample added"), "copied"),
    (("replaced by an older", "moved", "model"), "times"),
    (("swapped",), "elsewhere"),
    (("vectors",), "nothing"),
    (("results deleted",), "all"),
    (("results and store deleted",), "all"),
    (("numerics",), "all"),
    (("cleaning",), "all"),
]


def test_each_change_is_tried() -> None:
    tried = [name for names, _ in SOME for name in names]
    assert sorted([*tried, *OF_A_MODEL, "same weights", "sample removed"]) == sorted(CHANGES)
    assert {memory for _, memory in SOME} == set(MEMORIES)


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
    due = {name for change in expected for name in change.rewritten}
    if memory == "elsewhere":
        # The weights have another path there, for which all tables are made anew.
        due = {name for name in tables(work) if name.partition("/")[0] in fasta_files(work)}
    assert rewritten(work, there) == due
    assert written_times(store) == store
    assert_right(work)
    if "nothing" in changes and memory not in ("elsewhere", "copied"):
        assert "Nothing to be done" in said
    if memory != "all":
        there = tables(work)
        assert "Nothing to be done" in snakemake.run()
        assert tables(work) == there


def rewritten(work: Workspace, there: dict[str, tuple[int, int]]) -> set[str]:
    """The tables that were not there, or not as they are now."""
    return {name for name, times in tables(work).items() if times != there.get(name)}


def describe_like_one(work: Workspace, names: Iterable[str]) -> None:
    """What fetch_model writes of models with the weights of the first, each in a process that imports PyTorch."""
    results = Results(work.root / "results")
    one = results.descriptor("one")
    for name in names:
        replace(Descriptor.load(one), name=name).save(results.descriptor(name))
        shutil.copy(results.made_for(one), results.made_for(results.descriptor(name)))


def computed_of_models(work: Workspace) -> Counter[str]:
    """How many sequences each model embedded, by all receipts."""
    shards = [shard for receipt in work.receipts().values() for shard in receipt["shards"] if shard["computed"]]
    return Counter(name for shard in shards for name in [shard["model"]] * shard["sequences"])


def test_a_change_of_each_of_several_models_is_followed_and_one_that_comes_back_has_its_table_again(
    tiny_run: Workspace, tmp_path: Path
) -> None:
    work = tiny_run.copy(tmp_path / "work")
    samples("b")(work)
    add_models(*OF_A_MODEL)(work)
    work.change_config(lambda config: config["workers"].update(mix_models=True))
    describe_like_one(work, [name for name in OF_A_MODEL if name != "weights"])
    of_one, there = computed_of_models(work), tables(work)
    work.run("--rerun-triggers", "mtime")
    assert computed_of_models(work) == of_one
    assert rewritten(work, there) == {f"b/{name}/{TABLE}" for name in OF_A_MODEL}
    assert_right(work)

    for name, (values, _, _) in OF_A_MODEL.items():
        of_model(name, values)(work)
    shutil.rmtree(work.root / ".snakemake")
    there, store = tables(work), written_times(work.store_files())
    work.run("--drop-metadata")
    expected = Counter({name: embedded(shortest, "b") for name, (_, shortest, _) in OF_A_MODEL.items()})
    assert computed_of_models(work) == of_one + expected
    assert rewritten(work, there) == {f"b/{name}/{table}" for name, (_, _, table) in OF_A_MODEL.items()}
    assert written_times(store) == store
    assert_right(work)

    of_model("length", MODEL)(work)
    there = tables(work)
    work.run("--rerun-triggers", "mtime")
    assert computed_of_models(work) == of_one + expected
    assert rewritten(work, there) == {f"b/length/{TABLE}"}
    assert_right(work)


def test_a_dry_run_tells_what_will_be_done_and_writes_nothing(tiny_run: Workspace, tmp_path: Path) -> None:
    work = tiny_run.copy(tmp_path / "work")
    shutil.rmtree(work.root / ".snakemake")
    work.change_config(lambda config: config["models"]["one"].update(max_length=MAX_LENGTH - 1))
    files = written_times(work.files("results"))
    result = work.run("--dry-run", "--rerun-triggers", "mtime")
    assert "checkpoint plan" in result.stdout + result.stderr
    assert written_times(work.files("results")) == files
