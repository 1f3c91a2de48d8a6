"""Processes forked from one that has imported already what takes seconds: PyTorch 3, Snakemake 2.

Tests start hundreds of processes. Nothing is shared but what was imported, and of the project nothing was.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

PROJECT = str(Path(__file__).parents[1])
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pytest", "pyarrow.parquet", "snakemake.cli", "torch"])


def run_snakemake(command: list[str], cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `python -m snakemake ...` to its end."""
    assert command[:3] == [sys.executable, "-m", "snakemake"]
    with tempfile.TemporaryDirectory() as directory:
        outputs = [Path(directory, name) for name in ("stdout", "stderr")]
        process = CONTEXT.Process(target=_run, args=(command[2:], cwd, dict(env), outputs))
        process.start()
        process.join()
        texts = [path.read_text() if path.exists() else "" for path in outputs]
    assert process.exitcode is not None
    return subprocess.CompletedProcess(command, process.exitcode, *texts)


def _run(arguments: list[str], cwd: Path, env: dict[str, str], outputs: list[Path]) -> None:
    for number, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    # A new process would not have the tests' own places.
    sys.path[:] = ["", *(place for place in sys.path if not place.startswith(PROJECT) or "site-packages" in place)]
    sys.argv = arguments
    from snakemake.cli import main

    main()
