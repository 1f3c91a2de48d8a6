"""Directories in which the real workflow runs, and what the design says becomes of the records put in."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import yaml
from Bio import SeqIO
from warm import run_snakemake

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": ""}
#: Tests that draw at random, or try all of a table, do so at full size with this in the environment, else in small.
FULL_SIZE = "FULL_SIZE" in os.environ
#: No condition that a test waits for takes so long, even on a busy machine.
DEADLINE = 600.0

#: The model of the shared run.
MODEL, MAX_LENGTH, LAYERS = "esm2_8M", 120, 6

Vectors = dict[tuple[int, str], np.ndarray]


@dataclass(frozen=True)
class Entry:
    """A FASTA record as it is written, and what the design says of it: its clean residues, or why it has none."""

    header: str
    text: str
    residues: str = ""
    reason: str = ""
    flags: str = ""

    @property
    def id(self) -> str:
        return (self.header.split(None, 1) or [""])[0]


def plain(name: str, sequence: str) -> Entry:
    return Entry(name, sequence, sequence)


@dataclass(frozen=True)
class Workspace:
    """A directory with a sample sheet and a config in which the workflow is run."""

    root: Path
    project: Path = ROOT

    def write_fasta(self, name: str, entries: Iterable[Entry]) -> str:
        (self.root / name).write_text("".join(f">{entry.header}\n{entry.text}\n" for entry in entries))
        return name

    def write_samples(self, samples: Iterable[tuple[str, str]], sheet: str = "samples.tsv") -> None:
        (self.root / sheet).write_text("".join(f"{a}\t{b}\n" for a, b in [("sample", "fasta"), *samples]))

    def write_config(self, models: Mapping[str, Any], name: str = "config.yaml", **settings: Any) -> None:
        workers = {"max_jobs": 1, "gpus_per_job": 0} | settings.pop("workers", {})
        config = {"samples": "samples.tsv", "models": dict(models), "workers": workers} | settings
        (self.root / name).write_text(yaml.safe_dump(config))

    def change_config(self, change: Callable[[dict[str, Any]], None], name: str = "config.yaml") -> None:
        config = yaml.safe_load((self.root / "config.yaml").read_text())
        change(config)
        (self.root / name).write_text(yaml.safe_dump(config))

    def copy(self, target: Path, *, inputs_only: bool = False) -> "Workspace":
        """A copy with the times of files kept, for Snakemake to find as it was left."""
        outputs = ("results", "store", "logs", ".snakemake") if inputs_only else ()
        ignored = shutil.ignore_patterns(*outputs)
        shutil.copytree(self.root, target, symlinks=True, ignore=ignored, dirs_exist_ok=True)
        return Workspace(target)

    def copy_inputs(self, target: Path) -> "Workspace":
        """A copy of the inputs, and of what is told of the models: to read weights takes as long as a small run."""
        work = self.copy(target, inputs_only=True)
        for part in ("models", "made_for/models"):
            shutil.copytree(self.root / "results" / part, target / "results" / part)
        return work

    def command(self, *arguments: str, config: str = "config.yaml") -> list[str]:
        snakemake = [sys.executable, "-m", "snakemake", "--snakefile", str(self.project / "Snakefile"), "--cores", "2"]
        return [*snakemake, "--configfile", config, *arguments]

    def execute(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return run_snakemake(command, self.root, ENVIRONMENT)

    def run(self, *arguments: str, config: str = "config.yaml", check: bool = True) -> subprocess.CompletedProcess[str]:
        result = self.execute(self.command(*arguments, config=config))
        if check and result.returncode:
            pytest.fail(f"snakemake ended with {result.returncode}:\n{result.stdout}\n{result.stderr}")
        return result

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Snakemake in a session of its own, its output in snakemake.out."""
        with (self.root / "snakemake.out").open("wb") as out:
            return subprocess.Popen(
                self.command(*arguments),
                cwd=self.root,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=ENVIRONMENT,
            )

    def files(self, directory: str = ".") -> list[Path]:
        return sorted(path for path in (self.root / directory).rglob("*") if path.is_file())

    def store_files(self, store: str = "store") -> list[Path]:
        """The committed files of the store."""
        return sorted((self.root / store / "embeddings").rglob("[!.]*.parquet"))

    def table_files(self) -> list[Path]:
        return sorted((self.root / "results" / "features").rglob("*.parquet"))

    def table(self, sample: str, model: str, output: str, results: str = "results") -> pd.DataFrame:
        return pd.read_parquet(self.root / results / "features" / sample / model / f"{output}.parquet")

    def status(self, sample: str) -> pd.DataFrame:
        path = self.root / "results" / "status" / f"{sample}.tsv"
        return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)

    def receipts(self, results: str = "results") -> dict[str, dict[str, Any]]:
        paths = sorted((self.root / results / "receipts").glob("*.json"))
        return {path.stem: json.loads(path.read_text()) for path in paths}


@dataclass(frozen=True)
class Baseline:
    """A workspace in which the workflow has run to its end, and the entries of its two samples."""

    work: Workspace
    entries: dict[str, list[Entry]]
    new: list[str]
    """Real proteins that are in no sample."""

    def embedded(self, sample: str) -> list[Entry]:
        return [entry for entry in self.entries[sample] if entry.residues]

    def seen(self, sample: str) -> list[str]:
        """What the model sees of each embedded record, in file order."""
        return [entry.residues[:MAX_LENGTH] for entry in self.embedded(sample)]

    def unique(self) -> set[str]:
        return {entry.residues for entries in self.entries.values() for entry in entries if entry.residues}


def importing() -> str:
    """README's lines for a workflow that uses this one as a module, with the path of the project."""
    [lines] = re.findall(r"(?ms)^    module esmflow:.*?esmflow_\*$", (ROOT / "README.md").read_text())
    return textwrap.dedent(lines).replace("/path/to/esmflow", str(ROOT)) + "\n"


def shorten_demo(root: Path, longest: int = 200) -> None:
    """Keep of the demo's inputs, in a copy of the project or of its config, the proteins that take little time."""
    opened: list[tuple[str, Callable[..., Any]]] = [("demo_a.fasta", open), ("demo_b.fasta.gz", gzip.open)]
    for name, open_file in opened:
        with open_file(root / "config/demo" / name, "rt") as file:
            records = [record for record in SeqIO.parse(file, "fasta") if len(record) <= longest]
        assert len(records) > longest // 10
        with open_file(root / "config/demo" / name, "wt") as file:
            SeqIO.write(records, file, "fasta")


def script(name: str, *arguments: str | Path, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command of the workflow by hand."""
    command = [sys.executable, ROOT / "scripts" / f"{name}.py", *arguments]
    options = {"env": ENVIRONMENT} | options
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, **options)


def run_code(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python code that imports the project in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT / "scripts")}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def written_times(paths: Iterable[Path]) -> dict[Path, tuple[int, int]]:
    """What tells that a file was not written again: its inode and time."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def matrix(table: pd.DataFrame) -> np.ndarray:
    """The vectors of a feature table, float32 [rows, embed_dim]."""
    return np.stack(table["embedding"].to_list())


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def worst_error(
    table: pd.DataFrame, residues: Sequence[str], represent: Callable[[str], Vectors], layer: int, representation: str
) -> float:
    """The largest relative L2 error of a table's rows against fair-esm's vectors of the residues."""
    assert len(table) == len(residues)
    pairs = zip(matrix(table), residues, strict=True)
    return max(relative_error(row, represent(sequence)[layer, representation]) for row, sequence in pairs)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    """Poll until the condition holds or the process has ended; fail after the deadline."""
    end = time.monotonic() + DEADLINE
    while not condition():
        if process is not None and process.poll() is not None:
            return
        if time.monotonic() > end:
            pytest.fail("the condition did not come true before the deadline")
        time.sleep(0.002)


def find_worker(snakemake: subprocess.Popen[bytes], name: str = "embed.py") -> psutil.Process | None:
    """The command of that name among the descendants of a Snakemake; None if Snakemake ends before there is one."""
    found: list[psutil.Process] = []

    def search() -> bool:
        try:
            children = psutil.Process(snakemake.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return False
        for child in children:
            try:
                if [Path(part).name for part in child.cmdline()[1:2]] == [name]:
                    found.append(child)
            except psutil.NoSuchProcess:
                continue
        return bool(found)

    wait_until(search, snakemake)
    return found[0] if found else None


def error_line(result: subprocess.CompletedProcess[str]) -> str:
    """The one line in which a command, or Snakemake before any job, says what is wrong."""
    assert "Traceback" not in result.stderr, result.stderr
    lines = [line for line in result.stderr.splitlines() if "error: " in line.lower()]
    assert len(lines) == 1, result.stderr
    return lines[0]
