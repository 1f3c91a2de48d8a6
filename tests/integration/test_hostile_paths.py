"""Names of files that mean something to a shell, to Snakemake or to DuckDB: they are taken as they are."""

import random
from pathlib import Path

import pytest
import reference
from workflow import Workspace, script, worst_error, written_times

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
RESULTS = "-res ult's $(touch pwned) \"*[é~]"
NAMES = ["{sample}", "{}", "{a,b}", "-x", "~x", "$HOME", "$(touch pwned)", "*", "é漢 'a' \"b\"", ";x", "[a]?"]
SAMPLES = {"s0": NAMES[:1], "s1": NAMES[1:]}
EVERYTHING = "-x {run}{} $(touch pwned) *é漢'\"~[a]?;"


def proteins(name: str) -> dict[str, str]:
    draw = random.Random(name)
    return {f"{name}_{row}".replace(" ", "_"): "".join(draw.choices(LETTERS, k=30)) for row in range(2)}


def write_fasta(path: Path, entries: dict[str, str]) -> None:
    path.write_text("".join(f">{name}\n{residues}\n" for name, residues in entries.items()))


@pytest.fixture
def hostile(tmp_path: Path) -> Workspace:
    """A file of each name, in a directory of such a name; beside them what Snakemake would make of one."""
    work = Workspace(tmp_path / EVERYTHING)
    inputs = work.root / EVERYTHING
    inputs.mkdir(parents=True)
    reference.tiny_esm2(inputs / "tiny {model}.pt")
    rows = []
    for sample, names in SAMPLES.items():
        write_fasta(inputs / f"{sample}.fa", {"wrong": "MKV"})
        for name in names:
            write_fasta(inputs / f"{name}.fa", proteins(name))
            path = f"{EVERYTHING}/{name}.fa".replace('"', '""')
            rows.append((sample, f'"{path}"'))
    work.write_samples(rows, f"{EVERYTHING}/-{{sheet}}.tsv")
    work.write_config(
        {"tiny": {"weights": f"{EVERYTHING}/tiny {{model}}.pt"}},
        samples=f"{EVERYTHING}/-{{sheet}}.tsv",
        store=f"{EVERYTHING}/{EVERYTHING}",
        results=RESULTS,
    )
    return work


def assert_right(work: Workspace, changed: str = "") -> None:
    model = reference.tiny_esm2(work.root / EVERYTHING / "tiny {model}.pt")
    for sample, names in SAMPLES.items():
        records = [record for name in names for record in proteins("new" if name == changed else name).items()]
        table = work.table(sample, "tiny", "layer3.mean", results=RESULTS)
        assert list(zip(table["id"], table["length"], strict=True)) == [(name, len(own)) for name, own in records]
        residues = [own for _, own in records]
        assert worst_error(table, residues, lambda s: reference.represent(model, s), 3, "mean") <= 1e-5


def test_paths_are_taken_as_they_are(hostile: Workspace) -> None:
    around = set(hostile.root.iterdir())
    hostile.run()
    assert {path.name for path in set(hostile.root.iterdir()) - around} == {RESULTS, "logs", ".snakemake"}
    assert_right(hostile)
    again = hostile.run()
    assert "Nothing to be done" in again.stdout + again.stderr

    tables = written_times((hostile.root / RESULTS / "features").rglob("*.parquet"))
    write_fasta(hostile.root / EVERYTHING / "{sample}.fa", proteins("new"))
    hostile.run("--", f"{RESULTS}/status/s0.tsv", f"{RESULTS}/features/s0/tiny/layer3.mean.parquet")
    assert_right(hostile, changed="{sample}")
    others = {path: times for path, times in tables.items() if "s0" not in path.parts}
    assert written_times(others) == others
    checked = script("store", "verify", f"./{EVERYTHING}/{EVERYTHING}", cwd=hostile.root)
    assert checked.returncode == 0, checked.stderr
