"""The pool of processes: futures, deaths, closing. Its jobs here are a few lines of plain Python."""

import multiprocessing
import os
import subprocess
import sys
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT
from esmflow.errors import DataError, DeviceError
from esmflow.worker.pool import NoProcessError, PoolClosedError, ProcessDiedError, WorkerPool
from pool_jobs import (
    Bench,
    DieUntil,
    Fail,
    FailUnportably,
    FinishLater,
    Square,
    WaitFor,
    WhoAmI,
    dies_at_start,
    no_device,
)
from workflow import DEADLINE, wait_until


def test_results_and_exceptions_reach_the_future_of_their_own_job() -> None:
    reports: list[int] = []
    with WorkerPool(Bench, 2, on_report=reports.append) as pool:
        squares = [pool.submit(Square(number)) for number in range(20)]
        failing = pool.submit(Fail(DataError("weights are damaged")))
        strange = pool.submit(FailUnportably())
        after = pool.submit(Square(7))
        assert [future.result(DEADLINE) for future in squares] == [number**2 for number in range(20)]
        with pytest.raises(DataError, match="weights are damaged"):
            failing.result(DEADLINE)
        with pytest.raises(RuntimeError, match="UnportableError: of two parts"):
            strange.result(DEADLINE)
        assert after.result(DEADLINE) == 49
        assert sorted(reports) == [*range(8), 7, *range(8, 20)]


def test_a_process_lives_through_all_its_jobs_and_several_are_used(tmp_path: Path) -> None:
    with WorkerPool(Bench, 2) as pool:
        blocked = pool.submit(WaitFor(tmp_path / "go"))
        wait_until((tmp_path / "go.begun").exists)
        others = {pool.submit(WhoAmI()).result(DEADLINE) for _ in range(5)}
        (tmp_path / "go").touch()
        assert blocked.result(DEADLINE) == "done"
        assert len(others) == 1
        assert {pid for _, pid in others} < set(pool.processes)


def test_a_death_is_told_to_every_job_that_the_process_had_in_hand_and_to_no_other(tmp_path: Path) -> None:
    with WorkerPool(Bench) as pool:
        [pid] = pool.processes
        finishing = pool.submit(FinishLater(tmp_path / "go"))
        dying = pool.submit(DieUntil(tmp_path / "tries", 100))
        after = pool.submit(Square(3))
        for future in (finishing, dying):
            with pytest.raises(ProcessDiedError, match=f"process {pid} died of signal SIGKILL"):
                future.result(DEADLINE)
        assert after.result(DEADLINE) == 9
        assert (tmp_path / "go.begun").read_text() == (tmp_path / "tries").read_text() == "x"
        assert pool.restarts == 1


def test_a_job_that_died_may_be_tried_again_in_the_process_that_replaces_its_own(tmp_path: Path) -> None:
    job = DieUntil(tmp_path / "tries", 3)
    with WorkerPool(Bench, 2) as pool:
        for _ in range(2):
            with pytest.raises(ProcessDiedError):
                pool.submit(job, alone=True).result(DEADLINE)
        assert pool.submit(job, alone=True).result(DEADLINE) == 3
        assert pool.restarts == 2


def test_a_job_that_is_to_be_alone_has_no_company_before_or_after(tmp_path: Path) -> None:
    first, alone, last = (tmp_path / name for name in ("first", "alone", "last"))
    with WorkerPool(Bench) as pool:
        finishing = pool.submit(FinishLater(first))
        wait_until(first.with_suffix(".begun").exists)
        lonely = pool.submit(FinishLater(alone), alone=True)
        following = pool.submit(FinishLater(last))
        assert not alone.with_suffix(".begun").exists()
        first.touch()
        assert finishing.result(DEADLINE) == "done"
        wait_until(alone.with_suffix(".begun").exists)
        assert not last.with_suffix(".begun").exists()
        alone.touch()
        last.touch()
        assert lonely.result(DEADLINE) == following.result(DEADLINE) == "done"


def test_a_process_takes_its_next_job_while_one_is_finished(tmp_path: Path) -> None:
    with WorkerPool(Bench) as pool:
        finishing = pool.submit(FinishLater(tmp_path / "go"))
        failing = pool.submit(FinishLater(tmp_path / "go", DataError("cannot be written")))
        assert pool.submit(Square(3)).result(DEADLINE) == 9
        assert not finishing.done()
        assert not failing.done()
        (tmp_path / "go").touch()
        assert finishing.result(DEADLINE) == "done"
        with pytest.raises(DataError, match="cannot be written"):
            failing.result(DEADLINE)


def test_closing_drops_what_waits_ends_what_runs_and_refuses_what_comes(tmp_path: Path) -> None:
    pool = WorkerPool(Bench)
    [process] = [psutil.Process(pid) for pid in pool.processes]
    running = pool.submit(WaitFor(tmp_path / "never"))
    wait_until((tmp_path / "never.begun").exists)
    waiting = pool.submit(Square(1))
    pool.close()
    for future in (running, waiting):
        with pytest.raises(PoolClosedError):
            future.result(0)
    with pytest.raises(PoolClosedError):
        pool.submit(Square(1))
    assert not process.is_running()
    pool.close()


def test_what_cannot_be_started_fails_the_jobs_with_its_own_error() -> None:
    with WorkerPool(no_device, 2) as pool:
        with pytest.raises(DeviceError, match="no device for process"):
            pool.submit(Square(1)).result(DEADLINE)
        wait_until(lambda: not pool.processes)
        with pytest.raises(DeviceError, match="no device for process"):
            pool.submit(Square(2))


def test_processes_that_die_at_the_start_are_not_replaced_for_ever() -> None:
    with WorkerPool(dies_at_start) as pool, pytest.raises(NoProcessError, match="no process is left"):
        pool.submit(Square(1)).result(DEADLINE)


class OneProcess(SpawnContext):
    """A system that has room for one process only."""

    made = 0

    def Process(self, *arguments: Any, **options: Any) -> SpawnProcess:  # type: ignore[override]  # noqa: N802
        self.made += 1
        if self.made > 1:
            raise BlockingIOError("Resource temporarily unavailable")
        return SpawnProcess(*arguments, **options)


def test_it_works_with_as_many_processes_as_there_can_be(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: OneProcess())
    with WorkerPool(Bench, 3) as pool:
        assert len(pool.processes) == 1
        assert "working with 1 of 3 processes" in caplog.text
        assert pool.submit(Square(5)).result(DEADLINE) == 25


def test_processes_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(
        "import signal\n"
        "from esmflow.worker.pool import WorkerPool\n"
        "from pool_jobs import Bench, Square\n"
        "if __name__ == '__main__':\n"
        "    pool = WorkerPool(Bench, 2)\n"
        "    pool.submit(Square(1)).result()\n"
        "    print(*pool.processes, flush=True)\n"
        "    signal.pause()\n"
    )
    path = os.pathsep.join([str(ROOT / "scripts"), str(ROOT / "tests")])
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "parent.py"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert parent.stdout is not None
    with parent:
        children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(children) == 2
        parent.kill()
    _, left = psutil.wait_procs(children, DEADLINE)
    assert not left
