"""Ingest as the tests of its kinds run it: as a function and as a command."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from conftest import ROOT
from esmflow.inputs.catalog import ingest
from esmflow.inputs.fasta import Fasta
from in_process import call

SCRIPT = ROOT / "scripts" / "ingest.py"
Rows = list[dict[str, Any]]


def outputs(directory: Path) -> tuple[Path, Path]:
    return directory / "out" / "catalog" / "s.parquet", directory / "out" / "sequences" / "s.parquet"


def _arguments(directory: Path, fastas: Iterable[Path]) -> list[str]:
    catalog, sequences = outputs(directory)
    return [*map(str, fastas), "--sample", "s", "--catalog", str(catalog), "--sequences", str(sequences)]


def command(directory: Path, *fastas: Path, log: Path | None = None) -> list[str]:
    result = [sys.executable, str(SCRIPT), *_arguments(directory, fastas)]
    return [*result, "--log", str(log)] if log else result


def ingest_here(directory: Path, fastas: Iterable[Path], *options: str) -> subprocess.CompletedProcess[str]:
    """The command, run in this process."""
    return call("ingest", *_arguments(directory, fastas), *options, cwd=directory)


def run(
    arguments: list[str], preexec: Callable[[], None] | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, capture_output=True, text=True, check=False, preexec_fn=preexec, env=os.environ | environment
    )


def peak_megabytes(arguments: list[str]) -> float:
    # A small process in between: a child's peak begins at the size of the process that started it.
    measure = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stderr=-3); "
    measure += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    return int(subprocess.check_output([sys.executable, "-S", "-c", measure, *arguments])) / 1024


def catalog_of(directory: Path, *files: Fasta, fail_on_invalid: bool = False) -> Rows:
    """The rows of the catalog of these files, each with its residues."""
    ingest("s", files, *outputs(directory), fail_on_invalid=fail_on_invalid)
    catalog, sequences = (pq.read_table(path).to_pylist() for path in outputs(directory))
    residues = {row["key"]: row["residues"].decode() for row in sequences}
    return [row | {"residues": residues.get(row["key"], "")} for row in catalog]
