"""Running a command as a user would, and what it costs: wall seconds, CPU seconds, peak memory.

This module and all that run.py imports stay small in memory: Linux counts a parent's peak into that of a child that it
starts (until the child's own is higher), so a heavy parent would spoil the peaks. What needs torch is a command.

Other users of the machine distort more than their share: PyTorch's OpenMP threads spin while they wait for one that has
lost its core, which makes transformers and fair-esm several times slower (esmflow, whose packs are computed by single
threads, hardly). So OMP_WAIT_POLICY=passive is set for all, and what others took of the machine is recorded.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
HERE = Path(__file__).parent
BUILD = ROOT / "build" / "benchmarks"
PYTHON = sys.executable
#: As the extraction script of fair-esm truncates proteins.
MAX_RESIDUES = 1022


@dataclass(frozen=True)
class Cost:
    """What a command took, its child processes included."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    """Of the largest single process."""
    others: float
    """The share of the machine's CPU time that went to other processes (steal included)."""


def run(command: Sequence[str | Path], log: Path, cwd: Path = ROOT) -> Cost:
    """Run a command to its end; what it prints goes to `log`. Exits with the log's end if the command fails."""
    unit = 1 if sys.platform == "darwin" else 1024
    busy, total = cpu_times()
    with log.open("w") as file:
        start = time.perf_counter()
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_WAIT_POLICY": "passive"},
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(process.args)}\nended with {process.returncode}:\n{log.read_text()[-3000:]}")
    cpu_seconds = usage.ru_utime + usage.ru_stime
    busy, total = (after - before for after, before in zip(cpu_times(), (busy, total), strict=True))
    others = max(busy - cpu_seconds, 0) / total if total else 0.0
    return Cost(seconds, cpu_seconds, usage.ru_maxrss * unit, round(others, 3))


def figures(command: Sequence[str | Path], log: Path) -> dict[str, Any]:
    """Run a command that prints its figures as JSON in its last line; these, and the share of others."""
    cost = run(command, log)
    return json.loads(log.read_text().splitlines()[-1]) | {"others": cost.others}


def cpu_times() -> tuple[float, float]:
    """Seconds that all cores have been busy, and in total, since the machine's start; zeros where unknown."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0, 0.0
    ticks = [int(field) / os.sysconf("SC_CLK_TCK") for field in stat.read_text().split("\n")[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)  # less idle, and waiting for a disk
