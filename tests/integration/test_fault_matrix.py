"""A small draw of the fault matrix, whose full size takes an hour."""

import json
import shutil
import subprocess
import sys

import pytest
from workflow import ROOT


@pytest.mark.skipif(not shutil.which("gcc") or sys.platform != "linux", reason="needs gcc and Linux to let calls fail")
def test_kills_flips_and_failing_calls_lose_and_spoil_nothing() -> None:
    sizes = ["--kills", "2", "--flips", "3", "--calls", "4", "--records", "6", "--seed", "5"]
    command = [sys.executable, ROOT / "tests" / "fault_matrix", *sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout)
    assert (counts["kills"], counts["flips"], counts["calls"]) == (2, 3, 4)
    assert not any(counts[name] for name in ("lost", "doubled", "wrong", "silent", "tracebacks", "left"))
