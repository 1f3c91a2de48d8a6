"""The GPU benchmark and the tests for GPUs, in small on a CPU; the former with little more than PyTorch installed."""

import importlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
from workflow import DEADLINE, ENVIRONMENT, FULL_SIZE, ROOT, wait_until

#: What a machine with a GPU may have and no more, beside what these need themselves.
PACKAGES = ["torch", "numpy", "pandas", "pyarrow", "h5py", "transformers", "triton"]
PARTS = ["about", "clocks", "rates", "variants", "parity", "store", "peers"]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory from which those packages can be imported and no other."""
    directory, waiting, taken = tmp_path / "site", list(PACKAGES), set()
    directory.mkdir()
    while waiting:
        name = waiting.pop().lower()
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue  # Of another system or version of Python.
        if name not in taken:
            taken.add(name)
            needed = [text for text in package.requires or [] if "extra ==" not in text]
            waiting += [re.match(r"[\w.-]+", text)[0] for text in needed]  # type: ignore[index]
            for top in {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}:
                if not (directory / top).exists():
                    (directory / top).symlink_to(package.locate_file(top))
    return directory


def test_every_part_runs_without_a_gpu_and_writes_its_records_as_they_are_made(site: Path, tmp_path: Path) -> None:
    output = tmp_path / "gpu.jsonl"
    models = ["tiny", "ESMC-tiny"]
    sizes = ["--precision", "fp32", "--proteins", "20", "--repeats", "1", "--tokens", "1024"]
    sizes += ["--models", ",".join(models)]
    if not FULL_SIZE:
        # What it takes to find no compiler for a compiled model is most of the benchmark's time.
        sizes += ["--peers", "transformers, eager;fair-esm"]
    # Without site, Python knows of no packages but those of PYTHONPATH, and its children neither.
    command = [sys.executable, "-S", BENCHMARKS / "gpu.py", "--device", "cpu", *sizes, "--output", output]
    # A compiler would take longer still.
    environment = os.environ | {"PYTHONPATH": str(site), "CXX": str(tmp_path / "no-compiler")}
    environment.pop("TRITON_INTERPRET", None)

    def records() -> list[dict[str, Any]]:
        lines = output.read_text().splitlines(keepends=True) if output.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(list(map(str, command)), env=environment, stdout=log, stderr=log) as process,
    ):
        wait_until(lambda: any(record["part"] == "rates" for record in records()) or process.poll() is not None)
        assert process.poll() is None, (tmp_path / "log").read_text()
        assert process.wait(DEADLINE) == 0, (tmp_path / "log").read_text()
    assert list(dict.fromkeys(record["part"] for record in records())) == PARTS
    usable = [record for record in records() if "unusable" not in record]
    assert {record["kernel"] for record in usable if record.get("what") == "attention"} == {"sdpa"}
    assert {record["variant"] for record in usable if record["part"] == "variants"} == {"plain"}
    for model in models:
        of_model = [record for record in usable if record.get("model") == model]
        assert [record["whose"] for record in of_model if record["part"] == "peers"] == ["transformers, eager"]
        [parity] = [record for record in of_model if record["part"] == "parity"]
        assert parity["least_cosine"] >= 1 - 1e-9
        [stored] = [record for record in of_model if record["part"] == "store"]
        assert stored["residues_per_second"] * stored["seconds"] == pytest.approx(records()[0]["residues"])


def test_what_a_sequence_costs_the_host_is_told_part_by_part() -> None:
    command = [sys.executable, BENCHMARKS / "host.py", "--proteins", "300", "--embed-dim", "64"]
    result = subprocess.run(list(map(str, command)), env=ENVIRONMENT, capture_output=True, text=True, check=True)
    figures = json.loads(result.stdout)
    assert figures.pop("sequences") == 300
    assert {"host", "reading", "committing"} <= set(figures)


def test_every_benchmark_can_be_imported() -> None:
    """In a fork, for which the libraries have mostly been imported."""
    importing = multiprocessing.get_context("fork").Process(target=import_benchmarks)
    importing.start()
    importing.join(DEADLINE)
    assert importing.exitcode == 0


def import_benchmarks() -> None:
    sys.path.insert(0, str(BENCHMARKS))
    for path in sorted(BENCHMARKS.glob("*.py")):
        assert Path(importlib.import_module(path.stem).__file__ or "") == path


def test_the_tests_for_gpus_hold_on_a_cpu_where_they_need_no_gpu() -> None:
    options = ["-c", "tests/gpu/pytest.ini", "--device", "cpu", "--shapes", "8M,ESMC-small", "--depth", "1"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "tests/gpu"]
    result = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert re.search(r"\b16 passed, \d+ skipped", result.stdout)
