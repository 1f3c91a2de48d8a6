"""The demo, run by a workflow that uses this one as a module, and what README does with its tables."""

import gzip
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
from Bio import SeqIO
from workflow import ROOT, Vectors, Workspace, matrix, relative_error


def test_the_module_gives_its_tables_to_the_rules_of_the_importing_workflow(demo: Workspace) -> None:
    listed = (demo.root / "tables.txt").read_text().splitlines()
    assert sorted(listed) == [
        *(f"results/demo/features/{sample}/esm2_8M/layer6.mean.parquet" for sample in ("demo_a", "demo_b")),
        *(f"results/demo/status/{sample}.tsv" for sample in ("demo_a", "demo_b")),
    ]


@pytest.mark.parametrize("sample", ["demo_a", "demo_b"])
def test_the_module_computes_what_fair_esm_does(
    demo: Workspace, fair_esm: Callable[[str], Vectors], sample: str
) -> None:
    plain = ROOT / "config" / "demo" / f"{sample}.fasta"
    with plain.open() if plain.exists() else gzip.open(f"{plain}.gz", "rt") as file:
        sequences = {record.id: str(record.seq) for record in SeqIO.parse(file, "fasta")}
    table = demo.table(sample, "esm2_8M", "layer6.mean", results="results/demo")
    short = [row for row, name in enumerate(table["id"]) if len(sequences[name]) < 200 and sequences[name].isalpha()]
    vectors = matrix(table)
    for row in short[:5]:
        assert relative_error(vectors[row], fair_esm(sequences[table["id"][row]])[6, "mean"]) <= 1e-5


def test_the_classifier_in_readme_learns_from_the_tables(demo: Workspace) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    [block] = [block for block in blocks if "sklearn" in block]
    assert len([line for line in block.splitlines() if line]) <= 10
    result = subprocess.run([sys.executable, "-c", block], cwd=demo.root, capture_output=True, text=True, check=True)
    assert 0.7 < float(result.stdout.split()[-1]) <= 1
