"""The worker's command on many small shards: its start, the time between shards, one process against two."""

import json
from pathlib import Path
from statistics import median
from typing import Any

from end_to_end import prepare
from measure import PYTHON, ROOT, run

SHARD_MINUTES = 0.01


def measure(inputs: Path, work: Path, repeats: int) -> dict[str, Any]:
    """For one and for two processes of a thread each: medians of the receipts' figures, and how much faster two are."""
    run([*prepare(inputs, work, target_minutes=SHARD_MINUTES), "--until", "plan"], work / "plan.log", work)
    (job,) = (work / "results" / "plan" / "jobs").iterdir()
    runs: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for number in range(repeats):
        for processes, own in runs.items():
            place = work / f"{processes}-{number}"
            command = [PYTHON, ROOT / "scripts" / "embed.py", "--job", job, "--store", place / "store"]
            command += ["--receipt", place / "receipt.json", "--heartbeats", place / "heartbeats"]
            cost = run([*command, "--processes", str(processes), "--threads", str(processes)], work / "embed.log", work)
            receipt = json.loads((place / "receipt.json").read_text())
            own.append(receipt["figures"] | {"shards": len(receipt["shards"]), "others": cost.others})
    names = ["shards", "seconds", "startup_seconds", "computing_seconds", "idle_share", "model_loads", "others"]
    found = {processes: {name: median(own[name] for own in owns) for name in names} for processes, owns in runs.items()}
    after_start = {processes: own["seconds"] - own["startup_seconds"] for processes, own in found.items()}
    return {
        "one_process": found[1],
        "two_processes": found[2],
        "speedup_after_start": round(after_start[1] / after_start[2], 3),
    }
