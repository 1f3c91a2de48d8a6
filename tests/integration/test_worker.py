"""The worker's command with its pool: several processes and models, deaths, signals, the end of the allocation."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import reference
from esmflow.errors import DataError, IncompleteError
from esmflow.files import temporary_name
from esmflow.job import Job
from esmflow.receipt import Receipt
from esmflow.store.store import Store
from esmflow.worker.heartbeat import Heart
from esmflow.worker.messages import EmbedShard, ShardDone
from esmflow.worker.pool import WorkerPool
from esmflow.worker.process import Embedder, Report
from esmflow.worker.start import Start
from esmflow.worker.worker import Stop, Worker, work
from worker_jobs import assert_equal, make_job, rows, stored, wanted
from workflow import DEADLINE, ENVIRONMENT, FULL_SIZE, ROOT, error_line, wait_until, written_times

ROUNDS = 10 if FULL_SIZE else 1
#: Of each model of the job that several tests do.
SHARDS = 30 if FULL_SIZE else 12

# Those of the command are spawned as ever.
pytestmark = pytest.mark.usefixtures("forked_pools")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two tiny models."""
    directory = tmp_path_factory.mktemp("weights")
    paths = {name: directory / f"{name}.pt" for name in ("one", "two")}
    for seed, path in enumerate(paths.values()):
        reference.tiny_esm2(path, seed=seed)
    return paths


def command(job: Path, place: Path, *options: str) -> list[str]:
    outputs = ["--store", place / "store", "--receipt", place / "receipt.json", "--heartbeats", place / "heartbeats"]
    return [*map(str, [sys.executable, ROOT / "scripts" / "embed.py", "--job", job, *outputs]), *options]


def embed(job: Path, place: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(job, place, *options), env=ENVIRONMENT, capture_output=True, text=True, check=False)


def embed_here(job_file: Path, place: Path, start: Start, processes: int = 1) -> Receipt:
    """Do a job in this process with a pool of its own; its receipt."""
    store, heart = Store(place / "store"), Heart(place / "heartbeats")
    worker = Worker(Job.load(job_file), store, heart, "cpu")
    try:
        with WorkerPool(start, processes, on_report=worker.take_report) as pool:
            worker.embed(pool, Stop())
            return worker.tally.receipt(store, len(pool.processes), pool.restarts)
    finally:
        heart.stop()


def receipt(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / "receipt.json").read_text())
    return found


def start(job: Path, place: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(command(job, place, *options), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


def committed(place: Path) -> list[Path]:
    return sorted((place / "store").rglob("[!.]*.parquet"))


def beats(place: Path) -> int | None:
    """The process whose heartbeat there is."""
    found = list((place / "heartbeats").glob("[!.]*.json"))
    return json.loads(found[0].read_text())["pid"] if found else None


@pytest.fixture(scope="module")
def many(weights: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A job of many shards of two models, done by one process without trouble: its file, and where it was done."""
    root = tmp_path_factory.mktemp("many")
    job = make_job(root, weights, SHARDS, per_shard=30, longest=250)
    assert embed(job, root).returncode == 0
    return job, root


def test_three_processes_load_each_model_once_and_give_what_one_gives(many: tuple[Path, Path], tmp_path: Path) -> None:
    job, expected = many
    assert receipt(expected)["figures"]["model_loads"] == 2
    done = embed_here(job, tmp_path, Start((), 1, None), 3)
    # On a busy machine, a process may be ready only when the others have done all shards of a model.
    assert 4 <= done.figures.model_loads <= 6
    assert done.figures.processes == 3
    assert done.sequences_computed == wanted(job)
    assert_equal(Store(tmp_path / "store"), Store(expected / "store"))


def test_processes_killed_at_random_lose_and_double_no_row(many: tuple[Path, Path], tmp_path: Path) -> None:
    job, expected = many
    for number in range(ROUNDS):
        place, draw, killed = tmp_path / str(number), random.Random(number), 0
        process = start(job, place, "--processes", "2", "--threads", "2")
        try:
            worker = psutil.Process(process.pid)
            while process.poll() is None and (FULL_SIZE or killed < 2):
                more = len(committed(place)) + draw.randint(3, SHARDS * 2 // 3)
                wait_until(lambda more=more, place=place: len(committed(place)) >= more, process)  # type: ignore[misc]
                with suppress(psutil.NoSuchProcess, IndexError):
                    draw.choice([c for c in worker.children() if "spawn_main" in " ".join(c.cmdline())]).kill()
                    killed += 1
            _, errors = process.communicate()
        finally:
            process.kill()
        assert process.returncode == 0, errors
        assert killed >= 2
        assert rows(Store(place / "store")) == wanted(job)
        assert receipt(place)["skipped"] == []
        assert_equal(Store(place / "store"), Store(expected / "store"))


def test_a_signal_at_any_moment_ends_it_with_75_and_nothing_is_computed_again(
    many: tuple[Path, Path], tmp_path: Path
) -> None:
    job, expected = many
    first_seen: dict[Path, tuple[int, int]] = {}
    for number in range(ROUNDS):
        draw = random.Random(number)
        process = start(job, tmp_path)
        try:
            moment = draw.choice(["heartbeats", "store"])
            more = len(committed(tmp_path)) + draw.randint(0, 3)
            if moment == "heartbeats":
                wait_until(lambda process=process: beats(tmp_path) == process.pid, process)  # type: ignore[misc]
            else:
                wait_until(lambda more=more: len(committed(tmp_path)) > more, process)  # type: ignore[misc]
            process.send_signal(draw.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]))
            _, errors = process.communicate(timeout=DEADLINE)
        finally:
            process.kill()
        assert process.returncode == 75, errors
        assert "run the same command again" in errors
        assert not (tmp_path / "receipt.json").exists()
        for path, times in written_times(committed(tmp_path)).items():
            first_seen.setdefault(path, times)
    assert len(first_seen) < 2 * SHARDS
    assert embed(job, tmp_path).returncode == 0
    assert written_times(first_seen) == first_seen
    assert sum(not shard["computed"] for shard in receipt(tmp_path)["shards"]) == len(first_seen)
    assert_equal(Store(tmp_path / "store"), Store(expected / "store"))


def test_it_stops_by_itself_before_the_allocation_ends(esm2_8m: Path, tmp_path: Path) -> None:
    job = make_job(tmp_path, {"m": esm2_8m}, 200, per_shard=8, longest=600)
    late = embed(job, tmp_path, "--time-limit", "10", "--job-began", str(time.time() - 600))
    assert late.returncode == 75, late.stderr
    assert "the allocation ends before another shard would be done: 0 of 200 shards" in error_line(late)
    result = embed(job, tmp_path, "--time-limit", "0.2")
    assert result.returncode == 75, result.stderr
    assert "the allocation ends" in error_line(result)
    assert not (tmp_path / "receipt.json").exists()
    assert not list((tmp_path / "store").rglob(".*"))
    assert rows(Store(tmp_path / "store")) == 8 * len(committed(tmp_path))


@dataclass(frozen=True)
class StartAmidWrite(Start):
    """Processes that do not get beyond writing a file, and have the worker asked to end meanwhile."""

    parent: int = 0

    def __call__(self, index: int, report: Report) -> Embedder:
        embedder = super().__call__(index, report)

        def embed(task: EmbedShard) -> Future[ShardDone]:
            temporary_name(task.target).touch()
            os.kill(self.parent, signal.SIGTERM)
            signal.pause()
            raise AssertionError("not killed")

        embedder.embed = embed  # type: ignore[method-assign]
        return embedder


def test_what_a_process_was_writing_when_it_was_ended_is_not_left(
    weights: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job.load(make_job(tmp_path, {"one": weights["one"]}, 1, per_shard=3))
    store = Store(tmp_path / "store")
    monkeypatch.setattr("esmflow.worker.worker.GRACE", 0.1)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        with pytest.raises(IncompleteError, match="interrupted: 0 of 1 shards"):
            work(
                job,
                store,
                tmp_path / "receipt.json",
                StartAmidWrite((), 1, None, parent=os.getpid()),
                heartbeats=tmp_path / "heartbeats",
            )
    finally:
        for number, answer in before.items():
            signal.signal(number, answer)
    assert [path for path in store.root.rglob("*") if path.is_file()] == []


@dataclass(frozen=True)
class StartDeadly(Start):
    """Processes that a certain sequence kills."""

    deadly: bytes = b""

    def __call__(self, index: int, report: Report) -> Embedder:
        embedder = super().__call__(index, report)
        embed_shard = embedder.embed

        def embed(task: EmbedShard) -> Future[ShardDone]:
            keys = pq.read_table(task.shard.file)["key"].slice(task.first, task.stop - task.first).to_pylist()
            if self.deadly in keys:
                os.kill(os.getpid(), signal.SIGKILL)
            return embed_shard(task)

        embedder.embed = embed  # type: ignore[method-assign]
        return embedder


def test_a_sequence_that_kills_alone_is_skipped_and_its_neighbours_are_not(
    weights: dict[str, Path], tmp_path: Path
) -> None:
    job_file = make_job(tmp_path, {"one": weights["one"]}, 3, per_shard=3)
    job = Job.load(job_file)
    [*_, deadly, _] = pq.read_table(job.shards[1].file)["key"].to_pylist()
    done = embed_here(job_file, tmp_path, StartDeadly((), 1, None, deadly=deadly))
    embed_here(job_file, tmp_path / "healthy", Start((), 1, None))
    store = Store(tmp_path / "store")
    ours, theirs = stored(store), stored(Store(tmp_path / "healthy" / "store"))
    assert ours.keys() == theirs.keys()
    reasons = {key: value for (_, key), value in ours.items() if isinstance(value, str)}
    assert list(reasons) == [deadly]
    assert "died of signal SIGKILL" in reasons[deadly]
    assert [path.stem for path in committed(tmp_path)] == sorted(shard.name for shard in job.shards)
    assert not list((tmp_path / "store").rglob(".*"))
    assert [entry.key for entry in done.skipped] == [deadly.hex()]


def test_the_shards_of_a_model_that_fails_do_not_stop_those_of_another(
    weights: dict[str, Path], tmp_path: Path
) -> None:
    job = make_job(tmp_path, weights, 4)
    content = weights["two"].read_bytes()
    try:
        weights["two"].write_bytes(content[:1000])
        result = embed(job, tmp_path)
    finally:
        weights["two"].write_bytes(content)
    assert result.returncode == 65
    assert "two.pt" in error_line(result)
    assert len(committed(tmp_path)) == 4
    assert not (tmp_path / "receipt.json").exists()


def test_a_switch_that_fails_fails_its_own_job_and_the_pool_serves_with_the_old_model(
    weights: dict[str, Path], tmp_path: Path
) -> None:
    job = Job.load(make_job(tmp_path, weights, 1, per_shard=3))
    one, two = job.models.values()
    content = weights["two"].read_bytes()
    shard, target = job.shards[0], tmp_path / "shard.parquet"
    with WorkerPool(Start((), 1, None)) as pool:
        pool.submit(EmbedShard(one, shard, 0, 3, tmp_path / "before.parquet")).result()
        try:
            weights["two"].write_bytes(content[:1000])
            failed = pool.submit(EmbedShard(two, shard, 0, 3, tmp_path / "failed.parquet"))
            with pytest.raises(DataError, match=r"two\.pt") as told:
                failed.result()
        finally:
            weights["two"].write_bytes(content)
        assert len(str(told.value).splitlines()) == 1
        pool.submit(EmbedShard(one, shard, 0, 3, target)).result()
        assert pool.restarts == 0
    theirs = reference.tiny_esm2(tmp_path / "one.pt", seed=0)
    for residues, found in zip(
        pq.read_table(shard.file)["residues"].to_pylist(), pq.read_table(target)["layer2.mean"].to_pylist(), strict=True
    ):
        expected = reference.represent(theirs, residues.decode())[2, "mean"]
        assert np.linalg.norm(np.array(found) - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.fixture
def beating(many: tuple[Path, Path], tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = start(many[0], tmp_path)
    yield process
    process.kill()
    process.communicate()


def test_the_heartbeat_and_the_metrics_tell_what_is_done(many: tuple[Path, Path]) -> None:
    job, place = many
    beat = json.loads((place / "heartbeats" / "0123456789ab.json").read_text())
    assert beat["state"] == "dead"
    assert (beat["shards"], beat["shards_done"]) == (2 * SHARDS, 2 * SHARDS)
    assert beat["sequences_done"] == beat["sequences"] == wanted(job)
    assert beat["tokens"] == beat["residues"] + 2 * beat["sequences"]
    metrics = (place / "heartbeats" / "0123456789ab.prom").read_text()
    assert f'esmflow_sequences_total{{job="0123456789ab"}} {float(wanted(job))}' in metrics
    assert 'esmflow_state{job="0123456789ab",state="dead"} 1.0' in metrics
    assert 'esmflow_model_loads_total{job="0123456789ab"} 2.0' in metrics


def test_a_heartbeat_is_there_while_it_works(beating: subprocess.Popen[str], tmp_path: Path) -> None:
    path = tmp_path / "heartbeats" / "0123456789ab.json"
    wait_until(lambda: path.exists() and json.loads(path.read_text())["state"] == "busy", beating)
    beat = json.loads(path.read_text())
    assert beat["pid"] == beating.pid
    [child] = beat["processes"]
    assert psutil.Process(child).ppid() == beating.pid
    assert beat["host"] == os.uname().nodename
