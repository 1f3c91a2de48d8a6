"""Masked marginals from FASTA to HDF5, against masking by hand with fair-esm's module, one copy at a time."""

from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reference
from esmflow.errors import IncompleteError
from esmflow.representation import Output
from esmflow.store.store import commit
from esmflow.tables.residues import write_masked_marginals
from esmflow.tables.status import write_status
from esmflow.treatment import MASKED
from likelihood_runs import SAMPLE, Run, copies
from random_residues import LETTERS, residues

SIZE, OVERLAP = 50, 20


RECORDS = [
    ("short", residues(12, 0)),
    ("bad", "MK-"),
    ("odd", residues(20, 1, LETTERS + "X")),
    ("long", residues(71, 2)),
    ("short_again", residues(12, 0)),
]


def write(run: Run) -> Path:
    [output] = [output for output in run.model.outputs if output.kind.from_copies]
    target = run.results.residues(run.table(output.file_stem))
    paths = run.results.catalog(SAMPLE), run.results.masked(SAMPLE, run.model.name)
    write_masked_marginals(*paths, run.model, output, run.store, target)
    return target


def status(run: Run) -> list[list[str]]:
    paths = {run.model.name: run.results.masked(SAMPLE, run.model.name)}
    write_status(run.results.catalog(SAMPLE), [run.model], run.store, run.results.status(SAMPLE), paths)
    return [line.split("\t") for line in run.results.status(SAMPLE).read_text().splitlines()[1:]]


def by_hand(model: reference.ESM2, sequence: str) -> np.ndarray:
    """log p(letter) - log p(residue as it is), each position masked in a copy of its own: [residues, 20]."""
    starts = [*range(0, len(sequence) - SIZE, SIZE - OVERLAP), max(len(sequence) - SIZE, 0)]
    rows = []
    for i, letter in enumerate(sequence):
        start = max(starts, key=lambda start, i=i: min(i - start, start + SIZE - 1 - i))  # type: ignore[misc]
        row = reference.logits(model, sequence[start : start + SIZE], i - start)[i - start].double().log_softmax(-1)
        log_p = row[[reference.ALPHABET.get_idx(letter) for letter in LETTERS]].numpy()
        own = log_p[LETTERS.index(letter)] if letter in LETTERS else np.log(np.exp(log_p).mean())
        rows.append(log_p - own)
    return np.array(rows)


def test_a_file_has_the_marginals_of_each_sequence_once_and_all_its_records(tmp_path: Path) -> None:
    model = reference.tiny_esm2(tmp_path / "tiny.pt")
    run = Run(tmp_path, {"tiny": tmp_path / "tiny.pt"}, ("masked_marginals",))
    run.ingest(RECORDS)
    jobs = run.plan()
    assert copies(jobs) == sum(shard.sequences for job in jobs for shard in job.shards) == 12 + 20 + 71
    assert sum(len(job.shards) for job in jobs) > 10
    run.embed(jobs)
    with h5py.File(write(run)) as file:
        assert file["marginals"].shape == (103, 20)
        assert file["offsets"][:].tolist() == [0, 12, 32, 103]
        assert [name.decode() for name in file["id"]] == ["short", "odd", "long", "short_again"]
        assert file["sequence"][:].tolist() == [0, 1, 2, 0]
        assert file["length"][:].tolist() == [12, 20, 71, 12]
        assert file.attrs["esmflow.representation"] == "masked_marginals"
        assert file.attrs["esmflow.precision"] == "fp32"
        assert file.attrs["esmflow.long_sequences"] == "window"
        for number, name in enumerate(("short", "odd", "long")):
            rows = slice(*file["offsets"][number : number + 2])
            assert np.abs(file["marginals"][rows] - by_hand(model, dict(RECORDS)[name])).max() <= 1e-4
    assert run.plan() == []
    assert [row[2:] for row in status(run)] == [
        ["embedded", "", ""],
        ["skipped", "gap", ""],
        ["embedded", "", ""],
        ["embedded", "", "windowed:2"],
        ["embedded", "", ""],
    ]


def test_a_plan_costs_a_pass_for_each_residue_and_its_shards_part_a_long_protein(tmp_path: Path) -> None:
    reference.tiny_esm2(tmp_path / "tiny.pt")
    run = Run(tmp_path, {"tiny": tmp_path / "tiny.pt"}, ("masked_marginals",), long_sequences="full")
    run.ingest([("long", residues(300, 3))])
    shape = run.model.architecture
    one_pass = float(shape.flops(np.array([302]), shape.layers)[0])
    jobs = run.plan()
    shards = [shard for job in jobs for shard in job.shards]
    assert sum(shard.cost for shard in shards) == pytest.approx(300 * one_pass)
    shard_cost = run.target_minutes * 60 * 1e11
    assert len(shards) > 5
    assert max(shard.cost for shard in shards) <= shard_cost + one_pass
    assert sum(shard.residues for shard in shards) == 300 * 300


def test_what_two_proteins_have_in_common_but_for_the_mask_is_computed_once(tmp_path: Path) -> None:
    reference.tiny_esm2(tmp_path / "tiny.pt")
    run = Run(tmp_path, {"tiny": tmp_path / "tiny.pt"}, ("masked_marginals",))
    protein = residues(30, 4)
    mutant = protein[:7] + ("A" if protein[7] != "A" else "C") + protein[8:]
    run.ingest([("wt", protein), ("mutant", mutant)])
    jobs = run.plan()
    assert copies(jobs) == 2 * 30 - 1
    run.embed(jobs)
    with h5py.File(write(run)) as file:
        wt, other = file["marginals"][:30], file["marginals"][30:]
    assert np.abs((wt[7] - wt[7].max()) - (other[7] - other[7].max())).max() <= 1e-6
    assert np.abs(wt[8] - other[8]).max() > 1e-3


def test_a_truncated_protein_is_masked_where_it_is_seen_and_a_skipped_one_nowhere(tmp_path: Path) -> None:
    reference.tiny_esm2(tmp_path / "tiny.pt")
    for long_sequences, expected in (("truncate", 12 + 50), ("skip", 12)):
        (tmp_path / long_sequences).mkdir()
        run = Run(tmp_path / long_sequences, {"tiny": tmp_path / "tiny.pt"}, ("masked_marginals",), long_sequences)
        run.ingest([("short", residues(12, 0)), ("long", residues(71, 2))])
        jobs = run.plan()
        assert copies(jobs) == expected
        run.embed(jobs)
        with h5py.File(write(run)) as file:
            assert file["marginals"].shape == (expected, 20)


def test_a_protein_of_which_a_copy_was_skipped_is_left_out_with_the_reason(tmp_path: Path) -> None:
    reference.tiny_esm2(tmp_path / "tiny.pt")
    run = Run(tmp_path, {"tiny": tmp_path / "tiny.pt"}, ("masked_marginals",))
    run.ingest([("a", residues(12, 0)), ("b", residues(14, 1)), ("c", residues(9, 2))])
    output = Output(3, "masked")
    jobs = run.plan()
    with pytest.raises(IncompleteError, match="have no layer3"):
        write(run)
    run.embed(jobs)
    lost = next(iter(run.store.files(run.model.space(MASKED)))).path
    table = pq.read_table(lost)
    values = {output: [np.array(row, np.float32) for row in table[str(output)].to_pylist()]}
    keys = pa.array(table["key"].to_pylist(), pa.binary(32))
    reasons = ["out of memory", *[None] * (len(table) - 1)]
    commit(lost, keys, reasons, values, {"model": "tiny", "precision": "fp32", "attention": "sdpa"})
    with h5py.File(write(run)) as file:
        names = [name.decode() for name in file["id"]]
        assert len(names) == 2
        assert len(file["marginals"]) == file["offsets"][-1] == sum(file["length"])
    [gone] = {"a", "b", "c"} - set(names)
    assert [row[0] for row in status(run) if row[2:4] == ["skipped", "out of memory"]] == [gone]
