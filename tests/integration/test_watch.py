"""The view of a run, before, during and after it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from esmflow.results import Results
from esmflow.watch import look
from in_process import call
from workflow import ENVIRONMENT, MODEL, ROOT, Baseline, Workspace, find_worker, script, wait_until


def watch(work: Workspace) -> Any:
    result = call("watch", "results", "--once", "json", cwd=work.root)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def committed(work: Workspace) -> int:
    return len(work.store_files())


@pytest.fixture
def fresh(baseline: Baseline, tmp_path: Path) -> Workspace:
    """All proteins of the shared run in one sample and for one table, nothing run yet."""
    work = baseline.work.copy(tmp_path / "fresh", inputs_only=True)
    work.write_samples([("both", "a.fasta"), ("both", "b.fasta")])
    work.change_config(lambda config: config.update(sharding={"target_minutes": 0.0006}))
    work.change_config(lambda config: config["models"][MODEL].update(layers=[-1], representations=["mean"]))
    return work


def test_it_shows_what_is_so_before_during_and_after(baseline: Baseline, fresh: Workspace) -> None:
    (fresh.root / "results").mkdir()
    assert watch(fresh) is None
    fresh.run("--until", "plan")
    assert watch(fresh)["states"] == {"waiting": 1}

    stop_early(fresh)
    [file] = (fresh.root / "results/plan/jobs").iterdir()
    planned = json.loads(file.read_text())["shards"]
    in_store = {path.stem for path in fresh.store_files()}
    rest = [shard for shard in planned if shard["name"] not in in_store]
    [seen] = watch(fresh)["jobs"]
    assert seen["state"] == "stopped"
    assert seen["sequences"] - seen["sequences_done"] == sum(shard["sequences"] for shard in rest)
    assert seen["cost"] - seen["cost_done"] == pytest.approx(sum(shard["cost"] for shard in rest))
    # Planned again, it waits for its turn.
    plan = fresh.root / "results/plan/plan.json"
    times = plan.stat()
    os.utime(plan, (time.time() + 1, time.time() + 1))
    assert watch(fresh)["states"] == {"waiting": 1}
    os.utime(plan, ns=(times.st_atime_ns, times.st_mtime_ns))

    snakemake = fresh.start()
    worker = find_worker(snakemake)
    try:
        assert worker
        wait_until(lambda: committed(fresh) > len(in_store), snakemake)
        worker.suspend()
        [beat] = [json.loads(path.read_text()) for path in (fresh.root / "results/heartbeats").glob("*.json")]
        [job] = watch(fresh)["jobs"]
        assert job["state"] == beat["state"]
        assert job["host"] == beat["host"]
        assert job["sequences"] == len(baseline.unique())
        earlier = sum(shard["sequences"] for shard in planned if shard["name"] in in_store)
        assert job["sequences_done"] == earlier + beat["sequences_done"] <= job["sequences"]
        # The heart of a worker that is held stops; a minute later it is taken for lost.
        later = look(Results(fresh.root / "results"), time.time() + 60)
        assert later
        assert later.states == {"lost": 1}
        worker.resume()
        assert snakemake.wait() == 0
    finally:
        snakemake.kill()
        if worker:
            with suppress(psutil.NoSuchProcess):
                worker.kill()

    after = watch(fresh)
    assert after["states"] == {"done": 1}
    assert after["share_done"] == 1
    [receipt] = fresh.receipts().values()
    assert after["jobs"][0]["sequences_done"] == receipt["sequences"] == len(baseline.unique())
    followed = script("watch", "results", cwd=fresh.root)
    assert followed.returncode == 0
    assert "100.0% done, 1 done" in followed.stdout
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", followed.stdout)
    fresh.run("--forcerun", "plan")
    assert "nothing is to be embedded" in script("watch", "results", "--once", cwd=fresh.root).stdout


def stop_early(work: Workspace) -> None:
    """Run the planned job by hand and end it when it has committed something."""
    [job] = (work.root / "results/plan/jobs").iterdir()
    places = ["--store", "store", "--receipt", f"results/receipts/{job.name}", "--heartbeats", "results/heartbeats"]
    command = [sys.executable, ROOT / "scripts/embed.py", "--job", job, *places]
    embed = subprocess.Popen(command, cwd=work.root, env=ENVIRONMENT)
    wait_until(lambda: committed(work) >= 2, embed)
    embed.terminate()
    assert embed.wait() == 75


def test_a_directory_that_is_none_is_told_of(tmp_path: Path) -> None:
    result = script("watch", "nowhere", "--once", cwd=tmp_path)
    assert result.returncode == 78
    assert "nowhere: no such directory" in result.stderr


def test_one_that_is_ended_says_that_the_run_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "scripts/watch.py", tmp_path]
    watcher = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)

    def handles_sigterm() -> bool:
        [caught] = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{watcher.pid}/status").read_text())
        return bool(int(caught, 16) & 1 << signal.SIGTERM - 1)

    wait_until(handles_sigterm)
    watcher.terminate()
    _, told = watcher.communicate()
    assert watcher.returncode == 75
    assert told.endswith("error: no longer watched; the run itself goes on\n")
    assert "same command" not in told
