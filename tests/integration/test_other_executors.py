"""Another scheduler, by Snakemake's plugin for whatever has a command that submits: here one of four lines."""

import json

import reference
from workflow import Workspace, plain, worst_error

SUBMIT = """#!/bin/sh
echo "$1 $2 $3 $4" >> asked.txt
sh "$5" > job.out 2>&1 &
echo $!
"""
LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def test_a_command_that_submits_runs_the_worker_jobs_and_is_told_what_they_need(work: Workspace) -> None:
    model = reference.tiny_esm2(work.root / "tiny.pt")
    entries = [plain(f"p{number}", LETTERS[number:] + "X") for number in range(5)]
    work.write_samples([("one", work.write_fasta("one.fasta", entries))])
    work.write_config({"tiny": {"weights": "tiny.pt"}})
    (work.root / "submit.sh").write_text(SUBMIT)
    asked = "{threads} {resources.mem_mb} {resources.runtime} {resources.gpu}"
    work.run("--executor=cluster-generic", "--jobs=1", f"--cluster-generic-submit-cmd=sh submit.sh {asked}")

    [name] = (path.stem for path in (work.root / "results/plan/jobs").iterdir())
    job = json.loads((work.root / "results/plan/plan.json").read_text())["jobs"][name]
    [threads, memory, minutes, gpus] = map(int, (work.root / "asked.txt").read_text().split())
    assert (threads, memory, gpus) == (2, job["memory_mb"], 0)
    assert minutes > job["minutes"]
    residues = [entry.residues for entry in entries]
    table = work.table("one", "tiny", "layer3.mean")
    assert worst_error(table, residues, lambda s: reference.represent(model, s), 3, "mean") <= 1e-5
