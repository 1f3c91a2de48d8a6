"""End to end, FASTA to vectors: the workflow's `snakemake` command against an equivalent of fair-esm's script.

Each is a process of its own, timed as a whole: start, imports, loading the weights, computing, writing. Results and
store are fresh each time; weights lie in place beforehand. The contenders take turns, so that a busy machine hits all.
"""

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from measure import HERE, PYTHON, ROOT, Cost, run

LAYERS = 6
SNAKEMAKE = [Path(PYTHON).with_name("snakemake"), "--snakefile", ROOT / "Snakefile"]


def measure(
    inputs: Path, work: Path, repeats: int, residues: int, proteins: int, precisions: Sequence[str] = ("fp32",)
) -> dict[str, Any]:
    """Seconds of each contender, and residues per second from their median. precisions: esmflow's, float32 first."""

    def ours(precision: str) -> Callable[[], tuple[Cost, dict[str, Any]]]:
        return lambda: esmflow(inputs, work / "esmflow", proteins, precision)

    def extract(workers: int) -> Callable[[], tuple[Cost, dict[str, Any]]]:
        return lambda: (fair_esm(inputs, work / "fair-esm", workers, proteins), {})

    contenders = {
        ("esmflow" if precision == "fp32" else f"esmflow, {precision}"): ours(precision) for precision in precisions
    } | {
        "extract, 2 loader processes": extract(2),
        "extract, no loader process": extract(0),
    }
    runs: dict[str, list[tuple[Cost, dict[str, Any]]]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, contender in contenders.items():
            runs[name].append(contender())
    return {name: _summary(own, residues) for name, own in runs.items()}


def esmflow(inputs: Path, work: Path, proteins: int, precision: str) -> tuple[Cost, dict[str, Any]]:
    """One run of the workflow, and what its receipt and its rules' benchmark files say."""
    command = prepare(inputs, work, precision=precision)
    cost = run(command, work / "snakemake.log", work)
    with (work / "results" / "status" / "sample.tsv").open() as file:
        embedded = sum(row["status"] == "embedded" for row in csv.DictReader(file, delimiter="\t"))
    assert embedded == proteins, f"{embedded} of {proteins} were embedded"
    (receipt,) = (json.loads(path.read_text()) for path in (work / "results" / "receipts").glob("*.json"))
    figures = receipt["figures"]
    return cost, {
        "worker_seconds": figures["seconds"],
        "embed_seconds": figures["computing_seconds"],
        "embed_peak_bytes": figures["peak_memory_bytes"],
        "pack_fill": figures["pack_fill"],
        "rule_seconds": _rule_seconds(work / "results" / "benchmarks"),
    }


def prepare(inputs: Path, work: Path, precision: str = "fp32", **sharding: float) -> list[str | Path]:
    """A fresh directory for a run of the workflow, with the weights in place; the command that runs it."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / "samples.tsv").write_text(f"sample\tfasta\nsample\t{inputs / 'proteins.fasta'}\n")
    weights = json.loads((inputs / "descriptor.json").read_text())["files"][0]
    config = {
        "samples": "samples.tsv",
        "models": {
            "esm2_8M": {
                "weights": weights,
                "layers": [-1],
                "representations": ["mean"],
                "long_sequences": "truncate",
                "precision": precision,
            }
        },
        "sharding": sharding,
        "workers": {"max_jobs": 1, "gpus_per_job": 0},
    }
    (work / "config.yaml").write_text(json.dumps(config))
    command = [*SNAKEMAKE, "--profile", ROOT / "profiles" / "local", "--configfile", "config.yaml"]
    run([*command, "--", "results/models/esm2_8M.json"], work / "fetch.log", work)
    return command


def fair_esm(inputs: Path, work: Path, workers: int, proteins: int) -> Cost:
    """One run of the extraction script."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    script = [PYTHON, HERE / "extract_like_fair_esm.py", inputs / "esm2_t6_8M.pt", inputs / "proteins.fasta"]
    arguments = ["--include", "mean", "--repr_layers", "-1", "--nogpu", "--workers", str(workers)]
    cost = run([*script, work / "out", *arguments], work / "log")
    written = len(list((work / "out").glob("*.pt")))
    assert written == proteins, f"{written} of {proteins} were extracted"
    return cost


def _rule_seconds(directory: Path) -> dict[str, float]:
    """Wall seconds of each rule's command, summed over its jobs, from Snakemake's benchmark files."""
    seconds: dict[str, float] = {}
    for path in sorted(directory.rglob("*.tsv")):
        rule = path.relative_to(directory).parts[0].removesuffix(".tsv")
        if rule != "fetch_model":
            with path.open() as file:
                jobs = sum(float(row["s"]) for row in csv.DictReader(file, delimiter="\t"))
            seconds[rule] = round(seconds.get(rule, 0.0) + jobs, 3)
    return seconds


def _summary(runs: list[tuple[Cost, dict[str, Any]]], residues: int) -> dict[str, Any]:
    seconds = [cost.seconds for cost, _ in runs]
    details = [detail for _, detail in runs]
    result: dict[str, Any] = {
        "seconds": [round(value, 3) for value in seconds],
        "residues_per_second": round(residues / median(seconds), 1),
        "cpu_seconds": round(median(cost.cpu_seconds for cost, _ in runs), 3),
        "peak_bytes": max(cost.peak_bytes for cost, _ in runs),
        "others": [cost.others for cost, _ in runs],
    }
    for name in details[0]:
        values = [detail[name] for detail in details]
        if name == "rule_seconds":
            result[name] = {rule: round(median(value[rule] for value in values), 2) for rule in values[0]}
        else:
            result[name] = median(values)
    return result
