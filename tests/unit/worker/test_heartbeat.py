"""The files in which a worker job tells what it is at."""

import os
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

from esmflow.files import temporary_name
from esmflow.heartbeat import Heartbeat, ShardInHand
from esmflow.worker.heartbeat import Heart


def test_a_heartbeat_is_written_when_the_state_changes_and_else_after_its_interval(tmp_path: Path) -> None:
    heart, path = Heart(tmp_path), tmp_path / "job.json"
    busy = Heartbeat("job", "busy", busy=[ShardInHand("model", "shard")])
    heart.beat(busy)
    heart.beat(replace(busy, shards_done=1))
    assert Heartbeat.load(path).shards_done == 0
    assert Heartbeat.load(path).busy == busy.busy
    heart.beat(replace(busy, state="draining", shards_done=2))
    heart.beat(replace(busy, state="draining", shards_done=3))
    assert Heartbeat.load(path).shards_done == 2
    heart.stop()
    assert (Heartbeat.load(path).state, Heartbeat.load(path).shards_done) == ("dead", 3)
    assert 'esmflow_shards_total{job="job"} 3.0' in (tmp_path / "job.prom").read_text()


def test_what_a_killed_worker_left_half_written_goes_with_the_next_heartbeat(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    for name in ("job.json", "job.prom"):
        own = temporary_name(tmp_path / name).name
        (tmp_path / own.replace(f"-{os.getpid()}-", f"-{gone.pid}-")).write_text("half")
    assert len(list(tmp_path.iterdir())) == 2
    Heart(tmp_path).beat(Heartbeat("job", host=socket.gethostname()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job.json", "job.prom"]
