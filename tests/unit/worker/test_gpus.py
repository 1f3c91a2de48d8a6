"""The GPUs of a job: which it takes, that no two jobs share one, and that each process sees its own alone."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from esmflow.worker.gpus import claimed_gpus, visible_gpus
from esmflow.worker.pool import WorkerPool
from esmflow.worker.start import Start
from workflow import DEADLINE, ROOT, wait_until

NUMBERS = "0,1,2,3"
UUIDS = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,GPU-1a2b"
MIG = "MIG-GPU-8932f937/1/0,MIG-GPU-8932f937/2/0"


pytestmark = pytest.mark.usefixtures("forked_pools")


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for the locks of this test's GPUs."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("visible", [NUMBERS, UUIDS, MIG, " 2 , 3 "])
def test_the_scheduler_says_which_gpus_are_visible(visible: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus() == [name.strip() for name in visible.split(",")]


@pytest.mark.parametrize("visible", ["", "-1", "NoDevFiles"])
def test_there_may_be_none(visible: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus() == []
    with claimed_gpus(2) as claimed:
        assert claimed == []


CLAIM = """
import logging, sys, tempfile
from esmflow.worker.gpus import claimed_gpus
tempfile.tempdir = sys.argv[1]
logging.basicConfig(level=logging.INFO, stream=sys.stdout, force=True)
with claimed_gpus(2) as claimed:
    print(*claimed, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other_job(locks: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """A process that has claimed two of the four GPUs of this machine."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", NUMBERS)
    environment = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}
    command = [sys.executable, "-c", CLAIM, locks]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def test_two_jobs_at_once_never_share_a_gpu_and_a_killed_one_leaves_its_own(other_job: subprocess.Popen[str]) -> None:
    assert other_job.stdout is not None
    theirs = other_job.stdout.readline().split()
    assert len(theirs) == 2
    with claimed_gpus(4) as ours:
        assert sorted([*theirs, *ours]) == NUMBERS.split(",")
    other_job.kill()
    other_job.wait(DEADLINE)
    with claimed_gpus(4) as all_of_them:
        assert all_of_them == NUMBERS.split(",")


def test_a_job_waits_while_others_have_all_gpus(locks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}
    command = [sys.executable, "-c", CLAIM, locks]
    with ExitStack() as ours:
        ours.enter_context(claimed_gpus(1))
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        ) as waiting:
            assert waiting.stdout is not None
            assert "waiting for one of the GPUs 7" in waiting.stdout.readline()
            ours.close()
            assert waiting.stdout.read().split() == ["7"]


@dataclass(frozen=True)
class Sees:
    """Tell what a process of the pool sees, once all have this job."""

    directory: Path
    processes: int

    def run(self, embedder: object) -> str:
        (self.directory / str(os.getpid())).touch()
        wait_until(lambda: len(list(self.directory.iterdir())) == self.processes)
        assert "expandable_segments:True" in os.environ["PYTORCH_ALLOC_CONF"]
        return os.environ["CUDA_VISIBLE_DEVICES"]


@dataclass(frozen=True)
class WithoutDevice(Start):
    """As the pool's processes start, but that nothing is done with the GPU, which there need not be."""

    def __call__(self, index: int, report: object) -> None:  # type: ignore[override]
        self.hide_other_gpus(index)


@pytest.mark.parametrize("visible", [NUMBERS, "3,1", UUIDS, MIG])
def test_each_process_of_a_pool_sees_one_gpu_of_its_own(visible: str, tmp_path: Path) -> None:
    gpus = tuple(visible.split(","))
    (tmp_path / "here").mkdir()
    with WorkerPool(WithoutDevice(gpus, 1, None), len(gpus)) as pool:
        seen = [pool.submit(Sees(tmp_path / "here", len(gpus))) for _ in gpus]
        assert {future.result(DEADLINE) for future in seen} == set(gpus)
