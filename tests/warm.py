"""Processes forked from one that has imported already what takes seconds: PyTorch 3, Snakemake 2.

Tests start hundreds of processes. Nothing is shared but what was imported, and of the project nothing was.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

PROJECT = str(Path(__file__).parents[1])
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["pytest", "pyarrow.parquet", "snakemake.cli", "torch"])


def run_snakemake(command: list[str], cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `python -m snakemake ...` to its end."""
    assert command[:3] == [sys.executable, "-m", "snakemake"]
    with tempfile.TemporaryDirectory() as directory:
        outputs = [Path(directory, name) for name in ("stdout", "stderr")]
        process = _CONTEXT.Process(target=_run, args=(command[2:], cwd, dict(env), outputs))
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


@contextmanager
def forked_pools() -> Iterator[None]:
    """Have pools that tests make in their own process fork theirs, where how these begin is not what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", lambda _: _CONTEXT)
        yield
