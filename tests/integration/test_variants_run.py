"""Variants through the workflow: a sheet, a later sheet, a bad one; and a worker killed within one long protein."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import reference
from in_process import call
from likelihood_runs import SAMPLE, Run, copies
from random_residues import residues
from workflow import ENVIRONMENT, ROOT, Workspace, error_line, plain, wait_until, written_times

PROTEINS = {"p": residues(60, 1), "q": residues(25, 2), "r": residues(33, 3)}


def write_sheet(work: Workspace, lines: list[tuple[str, str, str]]) -> None:
    rows = ["sample\tid\tmutant", *("\t".join(line) for line in lines)]
    (work.root / "variants.tsv").write_text("\n".join(rows) + "\n")


def line(name: str, place: int, letter: str) -> tuple[str, str, str]:
    return "a", name, f"{PROTEINS[name][place]}{place + 1}{letter}"


def computed(receipts: dict[str, Any]) -> dict[str, int]:
    """How many sequences, or masked copies, were computed of each kind of output."""
    counts: dict[str, int] = {}
    for receipt in receipts.values():
        for shard in receipt["shards"]:
            name = " ".join(shard["outputs"])
            counts[name] = counts.get(name, 0) + shard["sequences"] * shard["computed"]
    return counts


@pytest.fixture
def scored(work: Workspace) -> Workspace:
    """A run with a sheet of ten positions of one protein, one of another, and one line that is refused."""
    reference.tiny_esm2(work.root / "tiny.pt")
    entries = [plain(name, sequence) for name, sequence in PROTEINS.items()]
    work.write_samples([("a", work.write_fasta("a.fasta", entries))])
    first = [line("p", place, "A") for place in range(10)]
    write_sheet(work, [*first, line("r", 3, "W"), ("a", "q", "A99C")])
    model = {"weights": "tiny.pt", "max_length": 40, "window_overlap": 10}
    work.write_config({"tiny": model}, variants="variants.tsv", exports=["proteingym"])
    work.run()
    return work


def test_a_later_sheet_with_ten_new_positions_computes_ten_masked_copies(scored: Workspace) -> None:
    table = pd.read_parquet(scored.root / "results/variants/a.parquet")
    assert table["reason"].isna().to_list() == [True] * 11 + [False]
    before = scored.receipts()
    # Three sequences have a mean; two are named by a variant.
    assert computed(before) == {"layer3.mean": 3, "layer3.wt_marginals": 2, "layer3.masked": 11}
    assert (scored.root / "results/variants/a.proteingym/p.csv").exists()
    untouched = [*scored.table_files(), scored.root / "results/status/a.tsv", *scored.store_files()]
    times = written_times(untouched)

    lines = [line("p", place, "C") for place in range(20)] + [line("r", 3, "W")]
    write_sheet(scored, lines)
    scored.run()
    new = {name: receipt for name, receipt in scored.receipts().items() if name not in before}
    assert computed(new) == {"layer3.masked": 10}
    assert sum(receipt["sequences_computed"] for receipt in new.values()) == 10
    assert written_times(untouched) == times
    table = pd.read_parquet(scored.root / "results/variants/a.parquet")
    assert table["reason"].isna().all()
    assert table["mutant"].to_list() == [mutant for _, _, mutant in lines]
    assert np.isfinite(table[["tiny.wt_marginals", "tiny.masked_marginals"]]).all(axis=None)


def match(root: Path, content: str) -> subprocess.CompletedProcess[str]:
    """Set a sheet of that content against the protein `p` of sample `a`; the result is to be in mutants.parquet."""
    run = Run(root, {}, ())
    run.ingest([("p", "MKV")])
    (root / "samples.tsv").write_text("sample\tfasta\na\ts.fasta\nb\ts.fasta\n")
    (root / "variants.tsv").write_text(content)
    places = ["--catalog", run.results.catalog(SAMPLE), "--sequences", run.results.sequences(SAMPLE)]
    sheets = ["--mutants", "mutants.parquet", "--samples", "samples.tsv", "--variants", "variants.tsv"]
    return call("match_variants", "--sample", "a", *places, *sheets, cwd=root)


def test_a_sample_has_the_lines_that_name_it(tmp_path: Path) -> None:
    result = match(tmp_path, "sample\tid\tmutant\nb\tp\tM1A\na\tp\tK2A\nb\tp\tV3A\na\tp\tV3C\n")
    assert result.returncode == 0, result.stderr
    assert pq.read_table(tmp_path / "mutants.parquet")["mutant"].to_pylist() == ["K2A", "V3C"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("sample\tid\tmutant\nc\tp\tA1C\n", "there is no sample 'c'"),
        ("sample\tid\nc\tp\n", "no column 'mutant'"),
        ("sample\tid\tmutant\na\tp\tA1C\textra\n", "variants cannot be read"),
        ("", "no column 'sample'"),
    ],
)
def test_a_sheet_that_cannot_be_used_is_told_in_a_line(tmp_path: Path, content: str, complaint: str) -> None:
    result = match(tmp_path, content)
    assert result.returncode == 78
    assert complaint in error_line(result)
    assert not (tmp_path / "mutants.parquet").exists()


def test_a_sheet_that_is_not_there_is_told_before_any_job(work: Workspace) -> None:
    reference.tiny_esm2(work.root / "tiny.pt")
    work.write_samples([("a", work.write_fasta("a.fasta", [plain("p", "MKV")]))])
    work.write_config({"tiny": {"weights": "tiny.pt"}}, variants="elsewhere.tsv")
    result = work.run("--dry-run", check=False)
    assert result.returncode == 78
    assert "variants: 'elsewhere.tsv' does not exist" in error_line(result)


def test_a_worker_killed_within_a_protein_of_3000_residues_loses_no_more_than_the_shard_in_hand(
    tmp_path: Path,
) -> None:
    reference.tiny_esm2(tmp_path / "tiny.pt")
    run = Run(tmp_path, {"tiny": tmp_path / "tiny.pt"}, ("masked_marginals",), target_minutes=5e-5)
    run.ingest([("long", residues(3000, 5))])
    [job] = run.plan()
    assert copies([job]) == 3000
    assert len(job.shards) > 20
    receipt = tmp_path / "receipt.json"
    job_file = run.results.job(job.name)
    outputs = ["--store", run.store.root, "--receipt", receipt, "--heartbeats", tmp_path / "heartbeats"]
    command = [sys.executable, ROOT / "scripts" / "embed.py", "--job", job_file, *outputs]

    def committed() -> list[Path]:
        return sorted((tmp_path / "store" / "embeddings").rglob("[!.]*.parquet"))

    worker = subprocess.Popen([*map(str, command)], env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    wait_until(lambda: len(committed()) >= 5, worker)
    worker.kill()
    worker.wait()
    kept = written_times(committed())
    assert 5 <= len(kept) < len(job.shards)
    done = subprocess.run([*map(str, command)], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # What its process, which may outlive the worker by a moment, has committed stays as well.
    assert {path: times for path, times in written_times(committed()).items() if path in kept} == kept
    assert len(committed()) == len(job.shards)
    assert sum(pq.read_metadata(path).num_rows for path in committed()) == 3000
    told = json.loads(receipt.read_text())
    assert sum(not shard["computed"] for shard in told["shards"]) >= len(kept)
