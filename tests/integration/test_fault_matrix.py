"""A small draw of the fault matrix, whose full size is for a night."""

import json
import shutil
import subprocess
import sys

import pytest
from workflow import ROOT


@pytest.mark.skipif(not shutil.which("gcc") or sys.platform != "linux", reason="needs gcc and Linux to let calls fail")
def test_flips_and_failing_calls_lose_and_spoil_nothing() -> None:
    sizes = ["--kills", "0", "--flips", "3", "--calls", "2", "--records", "6", "--seed", "5"]
    command = [sys.executable, ROOT / "tests" / "fault_matrix.py", *sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout)
    assert (counts["flips"], counts["calls"], counts["right"]) == (3, 2, 2)
