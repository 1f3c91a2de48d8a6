"""A process's server: the way of a shard through it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from esmflow.descriptor import Descriptor
from esmflow.errors import WriteError
from esmflow.jobs import Job
from esmflow.store.store import commit
from esmflow.worker.messages import EmbedShard, Model
from esmflow.worker.process import Server, load_engine
from esmflow.worker.registry import ModelRegistry
from worker_jobs import make_job
from workflow import DEADLINE, wait_until

CPU = torch.device("cpu")


@pytest.fixture
def shards(tmp_path: Path) -> list[EmbedShard]:
    """Three shards of a tiny model."""
    reference.tiny_esm2(tmp_path / "tiny.pt")
    job = Job.load(make_job(tmp_path / "job", {"tiny": tmp_path / "tiny.pt"}, 3))
    model = Model(Descriptor.load(Path(job.models["tiny"].descriptor)), "fp32", "auto")
    return [
        EmbedShard(model, Path(s.file), 0, s.sequences, s.treatment, s.outputs, tmp_path / f"{s.name}.parquet")
        for s in job.shards
    ]


def registry() -> ModelRegistry:
    return ModelRegistry(CPU, lambda model, precision: load_engine(model, precision, CPU, 1, None))


def test_a_shard_is_computed_while_the_one_before_is_written(shards: list[EmbedShard]) -> None:
    go = threading.Event()
    reports: list[dict[str, Any]] = []

    def held(*content: Any) -> None:
        assert go.wait(DEADLINE)
        commit(*content)

    server = Server(registry(), reports.append, commit=held)
    first = server.embed(shards[0])
    assert reports[-1]["target"] == shards[0].target
    assert reports[-1]["computed"]
    with ThreadPoolExecutor(1) as thread:
        second = thread.submit(server.embed, shards[1])
        wait_until(lambda: reports[-1]["target"] == shards[1].target)
        assert not first.done()
        assert not shards[0].target.exists()
        go.set()
        assert second.result(DEADLINE).result(DEADLINE)["self_check"]["sequences"] == 1
    assert first.done()
    assert shards[0].target.exists()
    assert shards[1].target.exists()


def test_a_shard_that_cannot_be_written_fails_and_no_other(shards: list[EmbedShard]) -> None:
    def full(target: Path, *content: Any) -> None:
        if target == shards[1].target:
            raise WriteError("the disk is full")
        commit(target, *content)

    server = Server(registry(), lambda report: None, commit=full)
    first, second, third = (server.embed(shard) for shard in shards)
    with pytest.raises(WriteError, match="full"):
        second.result(DEADLINE)
    assert first.result(DEADLINE)["figures"]["sequences"] == third.result(DEADLINE)["figures"]["sequences"] == 6
    assert [shard.target.exists() for shard in shards] == [True, False, True]
