"""What a user may change between two runs: exactly the missing work is done, and every table is right after it."""

import gzip
import io
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import reference
import yaml
from Bio import SeqIO
from workflow import (
    LAYERS,
    MODEL,
    ROOT,
    Baseline,
    Entry,
    Vectors,
    Workspace,
    error_line,
    matrix,
    plain,
    relative_error,
    script,
    worst_error,
    written_times,
)

TOLERANCE = 1e-5
NAMES = [f"layer{layer}.{representation}" for layer in (0, LAYERS) for representation in ("mean", "std")]
SOME = [("a", f"layer{LAYERS}.std"), ("b", f"layer{LAYERS}.mean")]
MAX_LENGTH = 150
TABLE = f"{MODEL}/layer{LAYERS}.mean"
BOTH = [f"a/{TABLE}", f"b/{TABLE}"]


@dataclass(frozen=True)
class Demo:
    """A cut of the demo, with two samples that share proteins."""

    work: Workspace
    samples: dict[str, list[Entry]]
    new: list[Entry]
    """Proteins that are in no sample."""

    def unique(self, *, longer_than: int = 0) -> int:
        """The number of different sequences."""
        return len({e.residues for entries in self.samples.values() for e in entries if len(e.residues) > longer_than})

    def tables(self) -> dict[str, tuple[int, int]]:
        """Each table, such as `a/esm2_8M/layer6.mean`, with what tells that it was not written again."""
        top = self.work.root / "results" / "features"
        times = written_times(self.work.table_files())
        return {str(path.relative_to(top).with_suffix("")): written for path, written in times.items()}

    def computed(self, before: dict[Path, tuple[int, int]]) -> int:
        """The number of sequences embedded, by the receipts that were not there before."""
        receipts = self.work.receipts()
        written = written_times(self.work.files("results/receipts"))
        return sum(receipts[path.stem]["sequences_computed"] for path in written if written[path] != before.get(path))


@pytest.fixture(scope="module")
def done(esm2_8m: Path, once: Callable[[str, Callable[[Path], None]], Path]) -> Demo:
    """The demo's cut, embedded."""
    content = (ROOT / "config/demo/demo_a.fasta").read_text()
    with gzip.open(ROOT / "config/demo/demo_b.fasta.gz", "rt") as file:
        content += file.read()
    found = {str(record.seq): record.id for record in SeqIO.parse(io.StringIO(content), "fasta")}
    entries = [
        plain(name, sequence) for sequence, name in found.items() if len(sequence) <= 300 and "J" not in sequence
    ]
    samples = {"a": [*entries[:12], entries[0]], "b": entries[8:18]}

    def run(directory: Path) -> None:
        work = Workspace(directory)
        work.write_samples([(name, work.write_fasta(f"{name}.fasta", own)) for name, own in samples.items()])
        model = {"weights": str(esm2_8m), "long_sequences": "truncate", "max_length": MAX_LENGTH}
        work.write_config({MODEL: model}, sharding={"target_minutes": 0.0005})
        work.run()

    work = Workspace(once("cut_demo", run))
    made = Demo(work, samples, entries[18:])
    assert len(work.store_files()) >= 4
    assert 0 < made.unique(longer_than=MAX_LENGTH) < made.unique()
    return made


@pytest.fixture
def demo(done: Demo, tmp_path: Path) -> Demo:
    return replace(done, work=done.work.copy(tmp_path / "copy"))


def assert_right(work: Workspace, fair_esm: Callable[[str], Vectors], scratch: Path) -> None:
    """Every table that the config asks for has the records that Biopython reads, with fair-esm's vectors."""
    config = yaml.safe_load((work.root / "config.yaml").read_text())
    rows = [line.split("\t") for line in (work.root / config["samples"]).read_text().splitlines()[1:]]
    tiny = reference.tiny_esm2(scratch / "tiny.pt")
    checked = 0
    for sample, fasta in rows:
        with (work.root / fasta).open() as file:
            records = list(SeqIO.parse(file, "fasta"))
        for name, model in config["models"].items():
            represent = fair_esm if name != "tiny" else lambda sequence: reference.represent(tiny, sequence)
            layers = LAYERS if name != "tiny" else tiny.num_layers
            cut = {"truncate": model["max_length"], "full": None, "skip": model["max_length"]}[model["long_sequences"]]
            kept = [r for r in records if model["long_sequences"] != "skip" or len(r) <= model["max_length"]]
            for layer in model.get("layers", [-1]):
                for representation in model.get("representations", ["mean"]):
                    layer %= layers + 1
                    table = work.table(sample, name, f"layer{layer}.{representation}")
                    assert table["id"].to_list() == [record.id for record in kept]
                    assert table["length"].to_list() == [len(record) for record in kept]
                    seen = [str(record.seq)[:cut] for record in kept]
                    assert worst_error(table, seen, represent, layer, representation) <= TOLERANCE
                    checked += 1
        status = work.status(sample)
        assert status["id"].to_list() == [record.id for record in records]
    assert checked


def nothing(demo: Demo) -> None:
    """The same command again."""


def model(**values: Any) -> Callable[[Demo], None]:
    """Change keys of the model's config."""
    return lambda demo: demo.work.change_config(lambda config: config["models"][MODEL].update(values))


def add_model(name: str, file: str) -> Callable[[Demo], None]:
    """Add a model with the weights of `file`, or for `same` with those of the one that there is."""

    def change(demo: Demo) -> None:
        reference.tiny_esm2(demo.work.root / "tiny.pt")

        def add(config: dict[str, Any]) -> None:
            weights = config["models"][MODEL]["weights"] if file == "same" else file
            config["models"][name] = config["models"][MODEL] | {"weights": weights}

        demo.work.change_config(add)

    return change


def only_speed(demo: Demo) -> None:
    def change(config: dict[str, Any]) -> None:
        config["workers"] |= {"max_jobs": 5, "tokens_per_pack": 500}
        config["sharding"] = {"target_minutes": 3}
        config["models"][MODEL]["attention"] = "sdpa"

    demo.work.change_config(change)


def samples(*names: str) -> Callable[[Demo], None]:
    """Change the sheet to these samples; `c` has proteins of the others and three new ones."""

    def change(demo: Demo) -> None:
        demo.work.write_fasta("c.fasta", [demo.new[0], *demo.samples["a"][:2], *demo.new[:3]])
        demo.work.write_samples([(name, f"{name}.fasta") for name in names])

    return change


def rewrite_fasta(change: Callable[[str], str], *, time: float | None = None) -> Callable[[Demo], None]:
    """Change the text of sample a's FASTA, which then has that time of change."""

    def rewrite(demo: Demo) -> None:
        path = demo.work.root / "a.fasta"
        path.write_text(change(path.read_text()))
        if time is not None:
            os.utime(path, (time, time))

    return rewrite


def mutate(text: str) -> str:
    """Another residue in the third record, which is in no other sample."""
    records = re.split(r"(?m)^(?=>)", text)[1:]
    header, sequence = records[2].split("\n", 1)
    return "".join([*records[:2], f"{header}\nW{sequence[1:]}", *records[3:]])


def reorder_and_rename(text: str) -> str:
    return "".join(reversed(re.split(r"(?m)^(?=>)", text))).replace(">", ">new_")


def remove(*paths: str) -> Callable[[Demo], None]:
    def change(demo: Demo) -> None:
        for path in paths:
            shutil.rmtree(demo.work.root / path)

    return change


def upgrade(file: str, old: str, new: str) -> Callable[[Demo], Demo]:
    """Another version of the code, elsewhere."""

    def change(demo: Demo) -> Demo:
        project = demo.work.root.parent / "upgraded"
        for part in ("rules", "scripts", "config", "envs"):
            shutil.copytree(ROOT / part, project / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "Snakefile", project)
        text = (project / "scripts/esmflow" / file).read_text()
        assert old in text
        (project / "scripts/esmflow" / file).write_text(text.replace(old, new))
        return replace(demo, work=Workspace(demo.work.root, project))

    return change


def count(number: int) -> Callable[[Demo], int]:
    return lambda demo: number


def long(demo: Demo) -> int:
    return demo.unique(longer_than=MAX_LENGTH)


YEARS_AGO, IN_YEARS = 1e9, 4e9


@pytest.mark.parametrize(
    ("change", "computed", "rewritten"),
    [
        pytest.param(nothing, count(0), [], id="nothing"),
        pytest.param(only_speed, count(0), [], id="speed"),
        pytest.param(samples("a", "b", "c"), count(3), [f"c/{TABLE}"], id="sample added"),
        pytest.param(samples("a"), count(0), [], id="sample removed"),
        pytest.param(rewrite_fasta(mutate), count(1), [f"a/{TABLE}"], id="FASTA edited"),
        pytest.param(rewrite_fasta(mutate, time=YEARS_AGO), count(1), [f"a/{TABLE}"], id="FASTA replaced by an older"),
        pytest.param(rewrite_fasta(reorder_and_rename), count(0), [f"a/{TABLE}"], id="FASTA reordered, IDs renamed"),
        pytest.param(rewrite_fasta(str, time=IN_YEARS), count(0), [], id="FASTA touched"),
        pytest.param(model(layers=[3, -1]), Demo.unique, [f"{s}/{MODEL}/layer3.mean" for s in "ab"], id="layer added"),
        pytest.param(
            model(representations=["mean", "std"]),
            Demo.unique,
            [f"{s}/{MODEL}/layer{LAYERS}.std" for s in "ab"],
            id="representation added",
        ),
        pytest.param(add_model("tiny", "tiny.pt"), Demo.unique, [f"{s}/tiny/layer3.mean" for s in "ab"], id="model"),
        pytest.param(
            add_model("again", "same"), count(0), [f"{s}/again/layer{LAYERS}.mean" for s in "ab"], id="same weights"
        ),
        pytest.param(model(long_sequences="full"), long, BOTH, id="policy full"),
        pytest.param(model(long_sequences="skip"), count(0), BOTH, id="policy skip"),
        pytest.param(model(max_length=MAX_LENGTH - 1), long, BOTH, id="maximal length"),
        pytest.param(model(precision="fp32"), Demo.unique, BOTH, id="precision"),
        pytest.param(remove("results"), count(0), BOTH, id="results deleted"),
        pytest.param(remove("results", "store"), Demo.unique, BOTH, id="results and store deleted"),
        pytest.param(remove("store"), count(0), [], id="store deleted"),
        pytest.param(upgrade("__init__.py", '__version__ = "', '__version__ = "9.'), count(0), [], id="version"),
        pytest.param(
            upgrade("planned_model.py", "NUMERICS_VERSION = ", "NUMERICS_VERSION = 1"), Demo.unique, BOTH, id="numerics"
        ),
        pytest.param(
            upgrade("planned_model.py", "CLEANING_VERSION = ", "CLEANING_VERSION = 1"),
            Demo.unique,
            BOTH,
            id="cleaning",
        ),
    ],
)
def test_a_change_computes_exactly_what_is_missing(
    demo: Demo,
    fair_esm: Callable[[str], Vectors],
    tmp_path: Path,
    change: Callable[[Demo], Demo | None],
    computed: Callable[[Demo], int],
    rewritten: Iterable[str],
) -> None:
    tables, receipts = demo.tables(), written_times(demo.work.files("results/receipts"))
    store = written_times(demo.work.store_files())
    demo = change(demo) or demo
    store = {path: times for path, times in store.items() if path.exists()}
    result = demo.work.run()
    expected = computed(demo)
    assert demo.computed(receipts) == expected
    found = demo.tables()
    assert sorted(table for table in found if found[table] != tables.get(table)) == sorted(rewritten)
    assert written_times(store) == store
    assert_right(demo.work, fair_esm, tmp_path)
    if change in (nothing, only_speed):
        assert "Nothing to be done" in result.stdout + result.stderr


def delete(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip_bit(path: Path) -> None:
    """In a vector, about in the middle of the file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def damage_one(demo: Demo, damage: Callable[[Path], None]) -> tuple[int, dict[Path, tuple[int, int]]]:
    """Damage a store file that sample a needs: how many sequences it held, and what tells that the others stay."""
    keys = {path: pq.read_table(path, columns=["key"])["key"].to_pylist() for path in demo.work.store_files()}
    in_a = set(pq.read_table(demo.work.root / "results/catalog/a.parquet")["key"].to_pylist())
    lost = next(path for path, held in keys.items() if in_a & set(held))
    damage(lost)
    return len(keys[lost]), written_times(path for path in keys if path != lost)


@pytest.mark.parametrize("damage", [delete, flip_bit])
def test_a_store_file_lost_or_damaged_is_told_of_and_computed_again_by_planning_again(
    demo: Demo, fair_esm: Callable[[str], Vectors], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    lost, kept = damage_one(demo, damage)
    (demo.work.root / "results/features" / f"a/{TABLE}.parquet").unlink()
    receipts = written_times(demo.work.files("results/receipts"))
    failed = demo.work.run(check=False)
    assert failed.returncode == 1
    assert re.search(r"error: .*run again with --forcerun plan", failed.stderr)
    assert list(demo.tables()) == [f"b/{TABLE}"]

    demo.work.run("--forcerun", "plan")
    assert demo.computed(receipts) == lost
    assert written_times(kept) == kept
    assert_right(demo.work, fair_esm, tmp_path)


@pytest.mark.parametrize("damage", [empty, cut_short, flip_bit])
def test_a_half_done_run_with_a_damaged_store_file_computes_it_again(
    demo: Demo, fair_esm: Callable[[str], Vectors], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """Half done: the shards are there, and neither receipts nor tables."""
    lost, kept = damage_one(demo, damage)
    for part in ("features", "status", "receipts"):
        shutil.rmtree(demo.work.root / "results" / part)
    demo.work.run()
    [receipt] = demo.work.receipts().values()
    assert sum(shard["sequences"] for shard in receipt["shards"] if shard["computed"]) == lost
    assert receipt["sequences_computed"] == lost
    assert written_times(kept) == kept
    assert_right(demo.work, fair_esm, tmp_path)


def test_receipts_without_their_shards_are_told_of_and_mended_by_planning_again(
    demo: Demo, fair_esm: Callable[[str], Vectors], tmp_path: Path
) -> None:
    shutil.rmtree(demo.work.root / "store")
    shutil.rmtree(demo.work.root / "results/features")
    failed = demo.work.run(check=False)
    assert failed.returncode == 1
    assert re.search(r"error: .*run again with --forcerun plan", failed.stderr)
    assert demo.tables() == {}
    receipts = written_times(demo.work.files("results/receipts"))
    demo.work.run("--forcerun", "plan")
    assert demo.computed(receipts) == demo.unique()
    assert_right(demo.work, fair_esm, tmp_path)


def test_a_clock_set_back_is_told_of_and_mended_by_touching_what_is_from_the_future(
    demo: Demo, fair_esm: Callable[[str], Vectors], tmp_path: Path
) -> None:
    """All outputs are from the future when a FASTA is edited."""
    for path in demo.work.root.glob("results/**/*"):
        os.utime(path, (IN_YEARS, IN_YEARS))
    rewrite_fasta(mutate)(demo)
    receipts = written_times(demo.work.files("results/receipts"))
    failed = demo.work.run(check=False)
    assert failed.returncode == 1
    assert "clock" in failed.stderr
    assert demo.computed(receipts) == 0

    for path in demo.work.root.glob("results/**/*"):
        os.utime(path)
    receipts = written_times(demo.work.files("results/receipts"))
    demo.work.run()
    assert demo.computed(receipts) == 1
    assert_right(demo.work, fair_esm, tmp_path)


def assert_same_tables(found: Workspace, expected: Workspace) -> None:
    """The tables of both samples of the shared run, cell by cell."""
    for sample in ("a", "b"):
        for name in NAMES:
            ours, theirs = (work.table(sample, MODEL, name) for work in (found, expected))
            assert ours[["id", "length"]].equals(theirs[["id", "length"]])
            assert np.array_equal(matrix(ours), matrix(theirs))


def keys_of(paths: list[Path]) -> list[bytes]:
    return [key for path in paths for key in pq.read_table(path, columns=["key"])["key"].to_pylist()]


def test_after_verify_put_a_damaged_file_aside_a_plain_run_computes_exactly_what_it_held(
    baseline: Baseline, again: Workspace
) -> None:
    lost = again.store_files()[0]
    keys = set(keys_of([lost]))
    content = bytearray(lost.read_bytes())
    content[len(content) // 2] ^= 4
    lost.write_bytes(content)
    others = written_times(again.store_files()[1:])
    result = script("store", "verify", "store", cwd=again.root)
    assert result.returncode == 65
    assert f"computes {len(keys)} sequences" in error_line(result)
    assert not lost.exists()
    old_receipts = set(again.receipts())
    again.run()
    new = [receipt for job, receipt in again.receipts().items() if job not in old_receipts]
    assert sum(receipt["sequences_computed"] for receipt in new) == len(keys)
    assert written_times(others) == others
    assert script("store", "verify", "store", cwd=again.root).returncode == 0
    assert_same_tables(again, baseline.work)
    result = again.run()
    assert "Nothing to be done" in result.stdout + result.stderr


def test_planning_again_with_nothing_missing_writes_no_table(demo: Demo) -> None:
    before = demo.tables()
    demo.work.run("--forcerun", "plan")
    assert demo.tables() == before


def test_three_worker_jobs_give_the_vectors_of_one(baseline: Baseline, tmp_path: Path) -> None:
    three = baseline.work.copy(tmp_path / "three", inputs_only=True)

    def divide_otherwise(config: dict[str, Any]) -> None:
        config["workers"]["max_jobs"] = 3
        config["workers"]["tokens_per_pack"] = 300
        config["sharding"]["target_minutes"] *= 3

    three.change_config(divide_otherwise)
    three.run("--", *(f"results/features/{sample}/{MODEL}/{name}.parquet" for sample, name in SOME))
    one_job, three_jobs = baseline.work.receipts(), three.receipts()
    assert (len(one_job), len(three_jobs)) == (1, 3)
    assert len(three.store_files()) >= 6
    assert sum(receipt["sequences_computed"] for receipt in three_jobs.values()) == len(baseline.unique())
    assert len(three.table_files()) == len(SOME)
    for sample, name in SOME:
        ours, theirs = (work.table(sample, MODEL, name) for work in (three, baseline.work))
        assert ours["id"].equals(theirs["id"])
        errors = [relative_error(*pair) for pair in zip(matrix(ours), matrix(theirs), strict=True)]
        assert max(errors) <= TOLERANCE
