"""What becomes of shards whose process dies, and of those that another run commits. Nothing is computed here."""

import os
import signal
import threading
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from esmflow.architecture import Architecture
from esmflow.engine.figures import Figures
from esmflow.errors import DeviceError, IncompleteError
from esmflow.job import Job, Shard
from esmflow.planned_model import Descriptor, ModelSpec, PlannedModel
from esmflow.receipt import ModelUse, Receipt, SelfCheck
from esmflow.store.quarantine import SetAsideError
from esmflow.store.store import Store, commit, metadata_of
from esmflow.worker.heartbeat import Heart
from esmflow.worker.messages import EmbedShard, ProcessFigures, ShardDone, ShardProgress
from esmflow.worker.parts import Part, Parts
from esmflow.worker.pool import ProcessDiedError, WorkerPool
from esmflow.worker.serving import Report, Start
from esmflow.worker.worker import Stop, Worker
from pool_jobs import dies_at_start, no_device
from worker_jobs import make_shards

SHAPE = Architecture("ESM-2", 2, 8, 2, 32, token_dropout=True, max_residues=None, lm_head=True, contact_head=True)
MODELS = {
    name: PlannedModel(
        ModelSpec(name, (2,), ("mean",), "full", 1022, 0, "fp32"), Descriptor(name, [], [], name * 32, SHAPE)
    )
    for name in ("ab", "cd")
}


pytestmark = pytest.mark.usefixtures("forked_pools")


def keys(shard: Shard) -> list[bytes]:
    found: list[bytes] = pq.read_table(shard.file)["key"].to_pylist()
    return found


def commit_numbers(task: EmbedShard) -> None:
    """Commit vectors that tell of the row of their sequence in the shard."""
    read, _ = task.read()
    [output] = task.shard.outputs
    vectors = [np.full(SHAPE.embed_dim, row, np.float32) for row in range(task.first, task.stop)]
    commit(task.target, read, [None] * len(vectors), {output: vectors}, {"precision": "fp32"})


@dataclass(frozen=True)
class Scene:
    """Processes that write down what they are given, and do by shard or key what a test wants."""

    tries: Path
    deadly: bytes = b""
    """The key of a sequence that kills."""
    held_up: str = ""
    """The name of a shard that is not written at the first try."""
    dies_after: str = ""
    """The name of a shard whose process dies when it is committed."""

    def __call__(self, index: int, report: Report) -> "Actor":
        return Actor(self, report)

    def tried(self) -> Counter[tuple[str, int, int]]:
        """How often each part was begun."""
        lines = self.tries.read_text().splitlines() if self.tries.exists() else []
        return Counter((name, int(first), int(stop)) for name, first, stop in map(str.split, lines))


@dataclass
class Actor:
    scene: Scene
    report: Report

    def embed(self, task: EmbedShard) -> Future[ShardDone]:
        name = task.shard.name
        first_try = not self.scene.tried()[name, task.first, task.stop]
        with self.scene.tries.open("a") as file:
            file.write(f"{name} {task.first} {task.stop}\n")
        self.report(ShardProgress(task.model.name, task.target))
        if self.scene.deadly in task.read()[0].to_pylist():
            os.kill(os.getpid(), signal.SIGKILL)
        self.report(ShardProgress(task.model.name, task.target, computed=True))

        def write() -> ShardDone:
            if name == self.scene.held_up and first_try:
                threading.Event().wait()
            commit_numbers(task)
            if name == self.scene.dies_after:
                os.kill(os.getpid(), signal.SIGKILL)
            use = ModelUse("cpu", "fp32", "sdpa", 1024, 0, SelfCheck(1, 0.0, 1.0), task.cost, 0.001)
            return ShardDone(use, Figures(), 0.0, ProcessFigures(os.getpid(), 1, 0, 0))

        return ThreadPoolExecutor(1).submit(write)


@pytest.fixture
def shards(tmp_path: Path) -> list[Shard]:
    """Three shards, each of two sequences."""
    return make_shards(tmp_path / "shards", "ab", 3, per_shard=2)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def worker_of(shards: list[Shard], store: Store) -> Worker:
    return Worker(Job("0123456789ab", MODELS, [], shards), store, Heart(store.root.parent / "heartbeats"), "cpu")


def run(worker: Worker, scene: Scene, store: Store) -> Receipt:
    """Have one process at a time do the work of a worker."""
    with WorkerPool(scene, on_report=worker.take_report) as pool:
        worker.embed(pool, Stop())
        return worker.tally.receipt(store, len(pool.processes), pool.restarts)


def rows(store: Store, shard: Shard) -> list[tuple[bytes, float]]:
    """Key and number of each sequence of a committed shard."""
    table = pq.read_table(store.path(MODELS[shard.model].space(shard.treatment), shard.name))
    return [(row["key"], row["layer2.mean"][0]) for row in table.to_pylist()]


def test_what_is_written_beside_a_shard_that_kills_is_tried_once_more_and_alone(
    shards: list[Shard], store: Store, tmp_path: Path
) -> None:
    innocent, killer, other = shards
    scene = Scene(tmp_path / "tries", deadly=keys(killer)[1], held_up=innocent.name)
    receipt = run(worker_of(shards, store), scene, store)
    tried = scene.tried()
    assert tried[innocent.name, 0, 2] == 2
    assert tried[killer.name, 0, 2] == 3
    assert tried[killer.name, 1, 2] == 3
    assert tried[other.name, 0, 2] == 1
    assert receipt.figures.process_restarts == 6
    reason = "the process died of signal SIGKILL, 3 times; see the log"
    assert [(entry.key, entry.reason) for entry in receipt.skipped] == [(keys(killer)[1].hex(), reason)]
    assert rows(store, innocent) == [(key, row) for row, key in enumerate(keys(innocent))]
    assert [key for key, _ in rows(store, killer)] == keys(killer)
    assert rows(store, killer)[0] == (keys(killer)[0], 0)
    assert all(shard.computed for shard in receipt.shards)
    assert not list(store.root.rglob(".*"))


def test_what_is_committed_by_a_process_that_dies_before_it_says_so_is_not_embedded_again(
    shards: list[Shard], store: Store, tmp_path: Path
) -> None:
    [alone] = shards[:1]
    scene = Scene(tmp_path / "tries", dies_after=alone.name)
    receipt = run(worker_of([alone], store), scene, store)
    assert scene.tried() == {(alone.name, 0, 2): 1}
    assert [shard.computed for shard in receipt.shards] == [True]


def test_what_another_run_commits_meanwhile_is_not_embedded_again_and_not_counted(
    shards: list[Shard], store: Store, tmp_path: Path
) -> None:
    worker, scene = worker_of(shards, store), Scene(tmp_path / "tries")
    target = store.path(MODELS["ab"].space(shards[1].treatment), shards[1].name)
    commit_numbers(EmbedShard(MODELS["ab"], shards[1], 0, 2, target))
    before = target.stat().st_mtime_ns
    receipt = run(worker, scene, store)
    assert {name for name, _, _ in scene.tried()} == {shards[0].name, shards[2].name}
    assert [shard.computed for shard in receipt.shards] == [True, False, True]
    assert (receipt.sequences, receipt.sequences_computed) == (6, 4)
    assert target.stat().st_mtime_ns == before


def test_a_half_that_an_earlier_run_left_is_taken_as_it_is(shards: list[Shard], store: Store, tmp_path: Path) -> None:
    [killer] = make_shards(tmp_path / "shards", "ab", 1, per_shard=4)
    target = store.path(MODELS["ab"].space(killer.treatment), killer.name)
    commit_numbers(EmbedShard(MODELS["ab"], killer, 2, 4, target.with_name(f".{killer.name}.2-4.parquet")))
    scene = Scene(tmp_path / "tries", deadly=keys(killer)[0])
    receipt = run(worker_of([killer], store), scene, store)
    assert {part for part in scene.tried() if part[1] >= 2} == set()
    assert [entry.key for entry in receipt.skipped] == [keys(killer)[0].hex()]
    assert rows(store, killer)[1:] == [(key, row) for row, key in enumerate(keys(killer))][1:]
    assert metadata_of(pq.read_schema(target))["precision"] == "fp32"
    assert not list(store.root.rglob(".*"))


def test_a_store_file_that_vanishes_before_the_receipt_is_told(
    shards: list[Shard], store: Store, tmp_path: Path
) -> None:
    worker = worker_of(shards[:1], store)
    run(worker, Scene(tmp_path / "tries"), store)
    path = store.path(MODELS["ab"].space(shards[0].treatment), shards[0].name)
    path.unlink()
    with pytest.raises(IncompleteError, match=f"{path}: store file is gone"):
        worker.tally.receipt(store, 1, 0)


def test_a_shard_that_is_damaged_is_left_and_the_others_are_done(
    shards: list[Shard], store: Store, tmp_path: Path
) -> None:
    content = bytearray(Path(shards[1].file).read_bytes())
    content[len(content) // 2] ^= 8
    Path(shards[1].file).write_bytes(content)
    with pytest.raises(SetAsideError, match="is damaged and set aside; run again with --forcerun plan"):
        run(worker_of(shards, store), Scene(tmp_path / "tries"), store)
    assert [path.read_bytes() for path in (store.root / "quarantine").iterdir()] == [content]
    for whole in (shards[0], shards[2]):
        assert [key for key, _ in rows(store, whole)] == keys(whole)


def test_what_died_goes_first_and_its_halves_after_the_third_death(shards: list[Shard], store: Store) -> None:
    [shard, other, _] = shards
    tasks = [EmbedShard(MODELS["ab"], one, 0, 2, store.root / f"{one.name}.parquet") for one in (shard, other)]
    parts = Parts(tasks, store)
    error = ProcessDiedError(1, "signal SIGKILL")
    for death in range(3):
        part = parts.next(float("inf"))
        assert part
        assert part.task == tasks[0]
        assert part.deaths == death
        assert parts.died(part, error) is None
    ranges = []
    while part := parts.next(float("inf")):
        ranges.append((part.task.shard.name, part.task.first, part.task.stop, part.deaths))
    assert ranges == [(shard.name, 0, 1, 0), (shard.name, 1, 2, 0), (other.name, 0, 2, 0)]


def test_what_would_not_be_done_in_time_is_passed_over_and_a_model_can_be_left(
    tmp_path: Path, store: Store, shards: list[Shard]
) -> None:
    [foreign] = make_shards(tmp_path / "foreign", "cd", 1)
    tasks = [EmbedShard(MODELS[s.model], s, 0, s.sequences, store.root / s.name) for s in (*shards, foreign)]
    parts = Parts(tasks, store)
    cheapest = min(tasks, key=lambda task: task.cost)
    assert parts.next(cheapest.cost / 2) is None
    taken = parts.next(cheapest.cost)
    assert isinstance(taken, Part)
    assert taken.task == cheapest
    assert len(parts) == 3
    parts.leave("ab")
    left = parts.next(float("inf"))
    assert left
    assert left.task.shard == foreign
    assert not parts


@pytest.mark.parametrize(("start", "error"), [(no_device, "no device"), (dies_at_start, "no process is left")])
def test_without_a_process_a_job_of_several_models_ends_with_the_reason_and_skips_nothing(
    start: Start, error: str, tmp_path: Path, store: Store
) -> None:
    shards = [*make_shards(tmp_path / "ab", "ab", 1, 1), *make_shards(tmp_path / "cd", "cd", 1, 1)]
    worker = worker_of(shards, store)
    with WorkerPool(start, on_report=worker.take_report) as pool, pytest.raises(DeviceError, match=error):
        worker.embed(pool, Stop())
    assert not list(store.root.rglob("*.parquet"))
