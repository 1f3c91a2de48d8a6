"""How a process of the pool begins."""

import subprocess
import sys

from workflow import ENVIRONMENT, ROOT

BOUND = """
import logging, os
from esmflow.worker.start import usable_threads
logging.basicConfig(format="%(message)s")
before = usable_threads(1)
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(before, usable_threads(8), usable_threads(1))
"""


def test_a_worker_bound_to_one_core_uses_one_thread_and_says_so() -> None:
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT / "scripts")}
    result = subprocess.run([sys.executable, "-c", BOUND], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.split() == ["1", "1", "1"]
    assert result.stderr.splitlines() == ["8 threads were asked for, but this process may use only 1 of the CPU cores"]
