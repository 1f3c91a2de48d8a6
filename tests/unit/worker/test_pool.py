"""The pool of processes: futures, deaths, closing. Its jobs here are a few lines of plain Python."""

import os
import subprocess
import sys
import threading
from concurrent.futures import Future
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT
from esmflow.errors import DataError, DeviceError
from esmflow.worker.pool import PoolClosedError, ProcessDiedError, WorkerPool
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
        assert pool.drain(DEADLINE)
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


def test_the_queue_is_bounded(tmp_path: Path) -> None:
    with WorkerPool(Bench, bound=1) as pool:
        pool.submit(WaitFor(tmp_path / "go"))
        wait_until((tmp_path / "go.begun").exists)
        pool.submit(Square(1))
        thread = threading.Thread(target=pool.submit, args=(Square(2),))
        thread.start()
        assert pool.waiting == 1
        assert thread.is_alive()
        (tmp_path / "go").touch()
        thread.join(DEADLINE)
        assert not thread.is_alive()
        assert pool.drain(DEADLINE)


def test_a_job_that_kills_its_process_is_tried_again_elsewhere(tmp_path: Path) -> None:
    with WorkerPool(Bench, 2) as pool:
        dying = pool.submit(DieUntil(tmp_path / "tries", 3))
        squares = [pool.submit(Square(number)) for number in range(5)]
        assert dying.result(DEADLINE) == 3
        assert [future.result(DEADLINE) for future in squares] == [0, 1, 4, 9, 16]
        assert pool.restarts == 2


def test_the_third_death_is_the_end_of_a_job_and_of_no_other(tmp_path: Path) -> None:
    with WorkerPool(Bench) as pool:
        dying = pool.submit(DieUntil(tmp_path / "tries", 100))
        after = pool.submit(Square(3))
        with pytest.raises(ProcessDiedError, match="SIGKILL, 3 times"):
            dying.result(DEADLINE)
        assert after.result(DEADLINE) == 9
        assert (tmp_path / "tries").read_text() == "xxx"


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


def test_a_job_that_kills_does_not_take_down_with_it_what_is_finished_beside_it(tmp_path: Path) -> None:
    begun = tmp_path / "go.begun"
    with WorkerPool(Bench) as pool:
        finishing = pool.submit(FinishLater(tmp_path / "go"))
        dying = pool.submit(DieUntil(tmp_path / "tries", 100))
        wait_until(lambda: begun.exists() and begun.read_text() == "xx")
        assert (tmp_path / "tries").read_text() == "x"
        (tmp_path / "go").touch()
        assert finishing.result(DEADLINE) == "done"
        with pytest.raises(ProcessDiedError, match="3 times"):
            dying.result(DEADLINE)
        assert begun.read_text() == "xx"
        assert (tmp_path / "tries").read_text() == "xxx"


def assert_closing_waits_for(job: Future[str], pool: WorkerPool, go: Path) -> None:
    """A job that ends once there is a file, which comes when the pool is closing already, is done as ever."""
    closing = threading.Thread(target=pool.close, args=(DEADLINE,))
    closing.start()
    go.touch()
    assert job.result(DEADLINE) == "done"
    closing.join(DEADLINE)
    assert not closing.is_alive()


def test_closing_gives_what_is_being_finished_its_time(tmp_path: Path) -> None:
    pool = WorkerPool(Bench)
    finishing = pool.submit(FinishLater(tmp_path / "go"))
    assert pool.submit(Square(2)).result(DEADLINE) == 4
    assert_closing_waits_for(finishing, pool, tmp_path / "go")


def test_closing_drops_what_waits_ends_what_runs_and_refuses_what_comes(tmp_path: Path) -> None:
    pool = WorkerPool(Bench)
    [process] = [psutil.Process(pid) for pid in pool.processes]
    running = pool.submit(WaitFor(tmp_path / "never"))
    wait_until((tmp_path / "never.begun").exists)
    waiting = pool.submit(Square(1))
    pool.close(0.1)
    for future in (running, waiting):
        with pytest.raises(PoolClosedError):
            future.result(0)
    with pytest.raises(PoolClosedError):
        pool.submit(Square(1))
    assert not process.is_running()
    pool.close()


def test_closing_lets_a_running_job_end_within_its_time(tmp_path: Path) -> None:
    pool = WorkerPool(Bench)
    running = pool.submit(WaitFor(tmp_path / "go"))
    wait_until((tmp_path / "go.begun").exists)
    assert_closing_waits_for(running, pool, tmp_path / "go")


def test_a_server_that_cannot_be_made_fails_the_jobs_with_its_own_error() -> None:
    with WorkerPool(no_device, 2) as pool:
        with pytest.raises(DeviceError, match="no device for process"):
            pool.submit(Square(1)).result(DEADLINE)
        wait_until(lambda: not pool.processes)
        with pytest.raises(DeviceError, match="no device for process"):
            pool.submit(Square(2))


def test_processes_that_die_at_the_start_are_not_replaced_for_ever() -> None:
    with WorkerPool(dies_at_start) as pool, pytest.raises(ProcessDiedError, match="no process is left"):
        pool.submit(Square(1)).result(DEADLINE)


class OneProcess(SpawnContext):
    """A system that has room for one process only."""

    made = 0

    def Process(self, *arguments: Any, **options: Any) -> SpawnProcess:  # type: ignore[override]  # noqa: N802
        self.made += 1
        if self.made > 1:
            raise BlockingIOError("Resource temporarily unavailable")
        return SpawnProcess(*arguments, **options)


def test_it_works_with_as_many_processes_as_there_can_be(caplog: pytest.LogCaptureFixture) -> None:
    with WorkerPool(Bench, 3, context=OneProcess()) as pool:
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
