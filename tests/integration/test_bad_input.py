"""Whatever is wrong is told in one line that names it, with the contract's exit code, and leaves nothing half done."""

import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import reference
import torch
from in_process import call
from likelihood_runs import Run
from workflow import (
    DEADLINE,
    ENVIRONMENT,
    LAYERS,
    MAX_LENGTH,
    MODEL,
    ROOT,
    Baseline,
    Entry,
    Workspace,
    error_line,
    matrix,
    plain,
    script,
    wait_until,
    worst_error,
    written_times,
)

SPEC = {"long_sequences": "truncate", "max_length": MAX_LENGTH, "window_overlap": 0, "precision": "auto"}
LETTERS = "ACDEFGHIKLMNPQRSTVWY"


@pytest.fixture
def small(work: Workspace) -> Workspace:
    """A tiny model and one sample, nothing run yet."""
    reference.tiny_esm2(work.root / "tiny.pt")
    entries = [plain(f"r{number}", LETTERS[number:]) for number in range(5)]
    work.write_samples([("one", work.write_fasta("one.fasta", entries))])
    work.write_config({"tiny": {"weights": "tiny.pt"}})
    return work


def refused(work: Workspace) -> str:
    """Run the workflow, which must end with 78 before any job and leave nothing; its line."""
    before = [*work.files(), *work.root.parent.iterdir()]
    result = work.run(check=False)
    assert result.returncode == 78, result.stderr
    after = [*work.files(), *work.root.parent.iterdir()]
    assert [path for path in after if path not in before and ".snakemake" not in path.parts] == []
    return error_line(result)


def test_an_unknown_key_is_named_with_the_nearest_known_one(small: Workspace) -> None:
    small.change_config(lambda config: config["workers"].update(max_job=1))
    line = refused(small)
    assert "'max_job'" in line
    assert "'max_jobs'" in line
    assert "workers" in line


def test_a_number_within_braces_on_the_command_line_is_taken_and_a_word_refused(small: Workspace) -> None:
    small.run("--dry-run", "--config", "workers={gpus_per_job: 0, max_jobs: 2}")
    result = small.run("--dry-run", "--config", "workers={max_jobs: two}", check=False)
    assert result.returncode == 78
    assert "workers.max_jobs: 'two'" in error_line(result)


def test_a_missing_fasta_is_named(small: Workspace) -> None:
    small.write_samples([("one", "one.fasta"), ("two", "nowhere.fasta")])
    line = refused(small)
    assert "nowhere.fasta" in line
    assert "two" in line


def test_a_sample_name_that_cannot_be_part_of_a_path_is_refused(small: Workspace) -> None:
    small.write_samples([("../../x", "one.fasta")])
    assert "'../../x'" in refused(small)


def test_a_model_name_that_cannot_be_part_of_a_path_is_refused(small: Workspace) -> None:
    small.write_config({"$(touch pwned)": {"weights": "tiny.pt"}})
    assert "'$(touch pwned)'" in refused(small)


def test_a_layer_out_of_range_is_named_by_plan(baseline: Baseline, work: Workspace) -> None:
    models = {MODEL: SPEC | {"layers": [LAYERS + 1], "representations": ["mean"]}}
    result = call("plan", *plan_arguments(baseline, work.root, models), cwd=baseline.work.root)
    assert result.returncode == 78
    line = error_line(result)
    assert f"models.{MODEL}.layers" in line
    assert str(LAYERS + 1) in line
    assert sorted(path.name for path in work.root.iterdir()) == ["models", "sequences"]


def plan_arguments(baseline: Baseline, target: Path, models: dict[str, Any]) -> list[str | Path]:
    """A plan in another directory of results, which has what it is made of."""
    for part in ("sequences", "models"):
        shutil.copytree(baseline.work.root / "results" / part, target / part)
    sizes = ["--target-minutes", "1", "--max-jobs", "1", "--gpus-per-job", "0"]
    places = ["--samples", "samples.tsv", "--store", "store", "--results", target]
    return ["--models", json.dumps(models), *places, *sizes]


def test_weights_cut_short_are_named(work: Workspace) -> None:
    weights = work.root / "tiny.pt"
    reference.tiny_esm2(weights)
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    arguments = ["--model", "tiny", "--weights", "tiny.pt", "--directory", "weights", "--descriptor", "tiny.json"]
    result = call("fetch_model", *arguments, cwd=work.root)
    assert result.returncode == 65
    assert "tiny.pt" in error_line(result)
    assert work.files() == [weights]


def test_invalid_fail_lists_the_first_20_and_ends(work: Workspace) -> None:
    entries = [Entry(f"bad{number}", f"MK{number}") if number % 2 else plain("ok", "MKV") for number in range(60)]
    work.write_fasta("bad.fasta", entries)
    arguments = ["--sample", "s", "--catalog", "out/c.parquet", "--sequences", "out/s.parquet", "--invalid", "fail"]
    result = script("ingest", *arguments, "--", "bad.fasta", cwd=work.root)
    assert result.returncode == 65
    assert "sample s" in error_line(result)
    assert "the first is bad.fasta:3: bad1" in error_line(result)
    *listed, _ = [line for line in result.stderr.splitlines() if "bad.fasta" in line and ": bad" in line]
    assert len(listed) == 20
    first = [(2 * number + 1, f"bad{number}") for number in range(1, 40, 2)]
    for line, (file_line, name) in zip(listed, first, strict=True):
        assert f"bad.fasta:{file_line}: {name}: digit" in line
    assert work.files() == [work.root / "bad.fasta"]


def ingest_arguments(target: Path, fasta: Path) -> list[str | Path]:
    places = ["--catalog", target / "catalog" / "big.parquet", "--sequences", target / "sequences" / "big.parquet"]
    return ["--sample", "big", *places, "--", fasta]


def embed_arguments(baseline: Baseline, target: Path) -> list[str | Path]:
    [job] = (baseline.work.root / "results/plan/jobs").iterdir()
    places = ["--job", job.relative_to(baseline.work.root), "--store", target / "store"]
    outputs = [
        "--receipt",
        target / "receipts" / job.name,
        "--heartbeats",
        target.with_name(f"{target.name}-heartbeats"),
    ]
    return [*places, *outputs]


def features_arguments(target: Path) -> list[str | Path]:
    spec = json.dumps(SPEC | {"layers": [LAYERS], "representations": ["mean"]})
    inputs = ["--catalog", "results/catalog/a.parquet", "--descriptor", f"results/models/{MODEL}.json"]
    output = ["--store", "store", "--table", target / "table.parquet"]
    return ["--model", MODEL, "--spec", spec, *inputs, *output]


@pytest.mark.parametrize("other", [{"embed_dim": 64}, {"seed": 1}], ids=["another size", "the same size"])
def test_weights_swapped_between_fetch_and_embed_are_named(
    work: Workspace, tmp_path_factory: pytest.TempPathFactory, other: dict[str, int]
) -> None:
    weights = work.root / "tiny.pt"
    reference.tiny_esm2(weights)
    run = Run(work.root, {"tiny": weights}, ("mean",))
    run.ingest([("p", "MKV")])
    [job] = run.plan()
    reference.tiny_esm2(weights, **other)
    before = work.files()
    arguments = ["--job", run.results.job(job.name), "--store", run.store.root, "--receipt", "r.json"]
    result = script("embed", *arguments, "--heartbeats", tmp_path_factory.mktemp("beats"), cwd=work.root)
    assert result.returncode == 65
    assert "tiny.pt" in error_line(result)
    assert work.files() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_gpu_that_cannot_be_used_is_no_reason_to_take_the_cpu(baseline: Baseline, work: Workspace) -> None:
    arguments = [*embed_arguments(baseline, work.root), "--gpus", "1"]
    given = ENVIRONMENT | {"CUDA_VISIBLE_DEVICES": "GPU-0f3c", "TMPDIR": str(work.root)}
    result = script("embed", *arguments, cwd=baseline.work.root, env=given)
    assert result.returncode == 69
    line = error_line(result)
    assert "GPU-0f3c" in line
    assert "gpus_per_job: 0" in line
    (work.root / "esmflow-GPU-0f3c.lock").unlink()
    assert work.files() == []


@dataclass
class Disk:
    """A small file system; or where none can be mounted, a directory in which files may not grow."""

    root: Path
    mounted: bool
    limit: int

    def options(self) -> dict[str, Any]:
        """For `script`: what keeps a command within the limit."""
        return {} if self.mounted else {"preexec_fn": self._limit_files}

    def _limit_files(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, resource.RLIM_INFINITY))

    def enlarge(self) -> None:
        if self.mounted:
            subprocess.run(["mount", "-o", "remount,size=64m", self.root], check=True)
        self.limit = 64 << 20

    def write_protect(self) -> None:
        if self.mounted:
            subprocess.run(["mount", "-o", "remount,ro", self.root], check=True)
        elif os.geteuid() == 0:
            pytest.skip("root that cannot mount: no place is read-only")
        else:
            self.root.chmod(0o555)

    def left(self) -> list[Path]:
        """Files and hidden directories."""
        return sorted(path for path in self.root.rglob("*") if path.is_file() or path.name.startswith("."))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Disk]]:
    """Makes one disk of so many KiB."""
    root = tmp_path / "disk"
    root.mkdir()
    made: list[Disk] = []

    def make(kib: int) -> Disk:
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", root]
        can = shutil.which("mount") and os.geteuid() == 0
        mounted = bool(can) and subprocess.run(command, capture_output=True, check=False).returncode == 0
        made.append(Disk(root, mounted, 16 << 10))
        return made[0]

    yield make
    for one in made:
        if one.mounted:
            subprocess.run(["umount", root], check=True)
        root.chmod(0o755)


def write_big_fasta(path: Path) -> None:
    draw = random.Random(1)
    lines = [f">r{number}\n{''.join(draw.choices(LETTERS, k=300))}\n" for number in range(2000)]
    path.write_text("".join(lines))


def test_a_full_disk_during_ingest_leaves_nothing_and_is_told(tmp_path: Path, disk: Callable[[int], Disk]) -> None:
    write_big_fasta(tmp_path / "big.fasta")
    full = disk(128)
    arguments = ingest_arguments(full.root, tmp_path / "big.fasta")
    result = script("ingest", *arguments, cwd=tmp_path, **full.options())
    assert result.returncode == 73, result.stderr
    assert str(full.root) in error_line(result)
    assert full.left() == []
    full.enlarge()
    assert script("ingest", *arguments, cwd=tmp_path, **full.options()).returncode == 0
    assert len(pq.read_table(full.root / "catalog/big.parquet")) == 2000


def test_a_full_disk_and_then_ctrl_c_during_embed_keep_what_was_committed(
    baseline: Baseline, disk: Callable[[int], Disk]
) -> None:
    full = disk(160)
    target = Workspace(full.root)
    arguments = [str(argument) for argument in embed_arguments(baseline, full.root)]
    result = script("embed", *arguments, cwd=baseline.work.root, **full.options())
    assert result.returncode == 73, result.stderr
    assert str(full.root) in error_line(result)
    committed = target.store_files()
    assert full.left() == committed
    assert committed or not full.mounted
    for path in committed:
        assert len(pq.read_table(path)) > 0
    times = written_times(committed)
    full.enlarge()

    result = interrupted(baseline, target, arguments)
    assert result.returncode == 75, result.stderr
    assert "run the same command again" in error_line(result)
    assert full.left() == target.store_files()
    assert len(committed) < len(target.store_files()) < len(baseline.work.store_files())
    assert written_times(committed) == times
    times = written_times(target.store_files())

    assert script("embed", *arguments, cwd=baseline.work.root).returncode == 0
    assert written_times(times) == times
    assert len(target.store_files()) == len(baseline.work.store_files())
    assert list((full.root / "receipts").iterdir())


def interrupted(baseline: Baseline, target: Workspace, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run embed until it has committed something to the target, where it gets the signal of Ctrl-C."""
    before = len(target.store_files())
    command = [sys.executable, str(ROOT / "scripts" / "embed.py"), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=baseline.work.root, env=ENVIRONMENT, **pipes)
    try:
        wait_until(lambda: len(target.store_files()) > before, process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
    return subprocess.CompletedProcess(command, process.returncode, "", errors)


@pytest.mark.parametrize("room", [32, 128], ids=["for_part_of_the_vectors", "for_part_of_the_table"])
def test_a_full_disk_during_features_leaves_nothing_and_is_told(
    baseline: Baseline, disk: Callable[[int], Disk], room: int
) -> None:
    full = disk(room)
    arguments = features_arguments(full.root)
    result = script("features", *arguments, cwd=baseline.work.root, **full.options())
    assert result.returncode == 73, result.stderr
    assert str(full.root) in error_line(result)
    assert full.left() == []
    full.enlarge()
    assert script("features", *arguments, cwd=baseline.work.root, **full.options()).returncode == 0
    found = pq.read_table(full.root / "table.parquet").to_pandas()
    assert np.array_equal(matrix(found), matrix(baseline.work.table("a", MODEL, f"layer{LAYERS}.mean")))


def test_a_full_disk_that_holds_the_log_too_is_told_in_one_line(tmp_path: Path, disk: Callable[[int], Disk]) -> None:
    write_big_fasta(tmp_path / "big.fasta")
    full = disk(64)
    (full.root / "ballast").write_bytes(bytes((16 if not full.mounted else 64) << 10))
    log = full.root / "ingest.log"
    log.touch()
    arguments = ["--log", log, *ingest_arguments(full.root / "results", tmp_path / "big.fasta")]
    result = script("ingest", *arguments, cwd=tmp_path, **full.options())
    assert result.returncode == 73, result.stderr
    error_line(result)
    assert full.left() == [full.root / "ballast", log]


@pytest.mark.parametrize(
    ("command", "log"),
    [*product(["ingest", "plan", "embed", "features", "fetch_model"], ["no log"]), ("ingest", "the log there too")],
)
def test_a_read_only_file_system_is_told(
    baseline: Baseline, esm2_8m: Path, disk: Callable[[int], Disk], command: str, log: str
) -> None:
    place = disk(1024)
    planned = plan_arguments(baseline, place.root, {MODEL: SPEC | {"layers": [3], "representations": ["max"]}})
    before = place.left()
    place.write_protect()
    arguments: dict[str, list[str | Path]] = {
        "ingest": ingest_arguments(place.root, Path("a.fasta")),
        "plan": planned,
        "embed": embed_arguments(baseline, place.root),
        "features": features_arguments(place.root),
        "fetch_model": [
            *("--model", "m", "--weights", esm2_8m, "--directory", place.root / "weights"),
            *("--descriptor", place.root / "m.json"),
        ],
    }
    logged: list[str | Path] = ["--log", place.root / "logs" / "x.log"] if log != "no log" else []
    result = call(command, *logged, *arguments[command], cwd=baseline.work.root)
    assert result.returncode == 73, result.stderr
    assert str(place.root) in error_line(result)
    assert place.left() == before


def test_a_table_that_cannot_be_written_stops_only_what_needs_it(again: Workspace) -> None:
    blocked, other = (f"results/features/{sample}/{MODEL}/layer0.mean.parquet" for sample in "ab")
    before = again.table("b", MODEL, "layer0.mean")
    shutil.rmtree((again.root / blocked).parent)
    # Where not even root can make a file.
    (again.root / blocked).parent.symlink_to("/sys/kernel")
    (again.root / other).unlink()
    result = again.run("--keep-going", "--", blocked, other, check=False)
    assert result.returncode != 0
    assert again.table("b", MODEL, "layer0.mean").equals(before)
    told = (again.root / "logs/features/a" / MODEL / "layer0.mean.log").read_text()
    assert re.search(rf"error: {blocked}: cannot be written: permission denied", told.splitlines()[-1])


def test_ctrl_c_amid_the_imports_is_told_in_one_line() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "embed.py"), "--help"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: any("pyarrow" in part.path for part in psutil.Process(process.pid).memory_maps()), process)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
    result = subprocess.CompletedProcess(command, process.returncode, out, errors)
    assert result.returncode == 75, errors
    assert "interrupted" in error_line(result)


def test_a_damaged_plan_is_told_by_snakemake_in_one_line(again: Workspace) -> None:
    plan = again.root / "results/plan/plan.json"
    plan.write_text(plan.read_text().replace("layer0.mean", "layer0.meam"))
    result = again.run("--dry-run", check=False)
    assert result.returncode == 65
    assert "results/plan/plan.json: run plan is damaged" in error_line(result)
    # Whatever rots of what tells what it was made for: it is made again.
    plan.unlink()
    (again.root / "results/made_for/plan.txt").write_bytes(b"\xff\xfe")
    assert "checkpoint plan" in again.run("--dry-run").stdout


HOSTILE = [
    "../../x",
    "/etc/passwd",
    "$(touch${IFS}pwned)",
    "`touch${IFS}pwned`",
    "';DROP",
    '"quoted"',
    "it's",
    ";rm",
    "|cat",
    "&&true",
    "a,b",
    "a\\tb",
    "{wildcards.sample}",
    "{{x}}",
    "%s%n",
    "NULL",
    "NaN",
    "007",
    "=1+1",
    "#comment",
    "-rf",
    "*",
    ">",
    "é漢字",
    "x\vy",
    "x\x1cy",
    "x\x85y",
    "x\u2028y",
]


def test_hostile_ids_come_through_unchanged_and_nothing_is_written_elsewhere(tmp_path: Path) -> None:
    work = Workspace(tmp_path / "outer" / "inner")
    work.root.mkdir(parents=True)
    model = reference.tiny_esm2(work.root / "tiny.pt")
    entries = [
        Entry(f"{name} $(touch pwned) 'x", LETTERS[n % 9 :] + "X", LETTERS[n % 9 :] + "X")
        for n, name in enumerate(HOSTILE)
    ]
    entries.append(Entry("bad;$(touch${IFS}pwned)", "MK-V", reason="gap"))
    name = "we ird';$(touch pwned)\".fasta"
    work.write_samples([("one", f'"{work.write_fasta(name, entries).replace(chr(34), chr(34) * 2)}"')])
    work.write_config({"tiny": {"weights": "tiny.pt"}})
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in tmp_path.rglob("*") if path.is_file()}
    around = set(tmp_path.rglob("*"))
    work.run()
    for path, digest in before.items():
        assert hashlib.sha256(path.read_bytes()).digest() == digest
    outputs = [work.root / name for name in ("results", "store", "logs", ".snakemake")]
    elsewhere = [p for p in tmp_path.rglob("*") if p not in around and not any(p.is_relative_to(o) for o in outputs)]
    assert elsewhere == []
    assert [path for path in tmp_path.rglob("*") if "pwned" in path.name and path not in before] == []

    embedded = [entry for entry in entries if entry.residues]
    table = work.table("one", "tiny", "layer3.mean")
    assert table["id"].to_list() == [name.split()[0] for name in HOSTILE]
    residues = [entry.residues for entry in embedded]
    assert worst_error(table, residues, lambda s: reference.represent(model, s), 3, "mean") <= 1e-5
    status = work.status("one")
    assert status["id"].to_list() == [entry.id for entry in entries]
    assert status["reason"].to_list() == [entry.reason for entry in entries]
