"""Temporary files: whose they are, what becomes of those of the killed, and what file systems refuse."""

import errno
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from conftest import ROOT
from esmflow import files
from esmflow.planned_model import Space
from esmflow.store.store import Store
from esmflow.treatment import WHOLE
from workflow import wait_until

DAY = 24 * 3600
#: Writes its temporary file's name and waits to be killed.
WRITER = """
import sys, time
from pathlib import Path
from esmflow import files
with files.atomic(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print(temporary.name, flush=True)
    sys.stdin.read()
"""


def writer(target: Path) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", WRITER, target], cwd=ROOT / "scripts", text=True, **pipes)


def age(path: Path, seconds: float) -> Path:
    for part in (path, *path.rglob("*")):
        os.utime(part, (time.time() - seconds,) * 2)
    return path


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    target = tmp_path / "table"
    with writer(target) as living, writer(target) as killed:
        assert living.stdout
        assert killed.stdout
        left = [process.stdout.readline().strip() for process in (living, killed)]
        killed.kill()
        # Nobody has asked yet how it ended, as in a container whose first process does not.
        wait_until(lambda: psutil.Process(killed.pid).status() == psutil.STATUS_ZOMBIE)
        assert names(tmp_path) == sorted(left)
        files.write_text(target, "whole")
        assert names(tmp_path) == sorted([left[0], "table"])
        living.communicate("")
    assert target.read_text() == "half"
    assert names(tmp_path) == ["table"]


def test_a_process_that_bears_the_number_of_a_killed_one_finds_none_of_its_files(tmp_path: Path) -> None:
    target = tmp_path / "plan"
    name = files.temporary_name(target).name
    *_, began, number = name.split("-")
    mine = tmp_path / name
    mine.mkdir()
    before = tmp_path / name.replace(f"-{began}-{number}", f"-{int(began) - 100}-{number}")
    before.mkdir()
    (before / "shard").touch()
    with files.atomic_directory(target) as directory:
        assert directory not in (mine, before)
        assert mine.exists()
        assert not before.exists()


def test_two_containers_of_one_name_and_process_number_never_share_a_temporary_file(tmp_path: Path) -> None:
    names_ = {files.temporary_name(tmp_path / "x") for _ in range(100)}
    assert len(names_) == 100


@pytest.mark.parametrize(
    "name", [".x.parquet.0123abcd-7-99-89abcdef.tmp", ".x.parquet.host-7.tmp", ".shard.0-5.parquet"]
)
def test_what_processes_elsewhere_left_goes_when_it_is_older_than_a_day(tmp_path: Path, name: str) -> None:
    space = Space("ab" * 32, WHOLE, "fp32")
    directory = tmp_path / space.directory
    directory.mkdir(parents=True)
    left = directory / name
    left.write_text("half")
    (directory / "shard.parquet").touch()
    age(directory, DAY - 600)
    Store(tmp_path).sweep([space])
    assert left.exists()
    age(directory, DAY + 600)
    Store(tmp_path).sweep([space])
    assert names(directory) == ["shard.parquet"]


def test_a_directory_that_is_still_written_to_is_not_left_over(tmp_path: Path) -> None:
    work = tmp_path / ".plan.0123abcd-7-99-89abcdef.tmp"
    (work / "shards").mkdir(parents=True)
    (work / "shards" / "new").touch()
    age(work, DAY + 600)
    assert files.is_left_over(work)
    (work / "shards" / "new").touch()
    assert not files.is_left_over(work)


def test_a_directory_with_a_file_that_is_open_elsewhere_is_replaced_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, where such a file is there as `.nfs...` until it is closed."""
    target = tmp_path / "table.parts"
    target.mkdir()
    (target / ".nfs0001").write_text("old")
    unlink = os.unlink

    def busy(path: str, **options: int) -> None:
        if Path(path).name.startswith(".nfs"):
            raise OSError(errno.EBUSY, "Device or resource busy", path)
        unlink(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "unlink", busy)
    with files.atomic_directory(target) as directory:
        (directory / "part-00000.parquet").write_text("new")
    assert names(target) == ["part-00000.parquet"]
    monkeypatch.undo()
    [aside] = [path for path in tmp_path.iterdir() if path != target]
    assert names(aside) == [".nfs0001"]
    shutil.rmtree(aside)


def test_two_processes_may_replace_a_directory_at_the_same_time(tmp_path: Path) -> None:
    target = tmp_path / "plan"

    def replace(number: int) -> None:
        for _ in range(100):
            with files.atomic_directory(target) as directory:
                (directory / "whose").write_text(str(number))

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(replace, (1, 2)))
    assert names(tmp_path) == ["plan"]
    assert names(target) == ["whose"]


def test_a_directory_stays_if_another_cannot_take_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "table.parts"
    target.mkdir()
    (target / "old").touch()

    def full(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"), files.atomic_directory(target):
        pass
    assert names(target) == ["old"]
    assert names(tmp_path) == ["table.parts"]


def test_a_directory_that_cannot_be_flushed_stops_nothing_and_a_file_does() -> None:
    # Of what is in /proc nothing can be: EINVAL, as from directories of CIFS and some of FUSE.
    with pytest.raises(OSError, match="Invalid argument"):
        os.fsync(os.open("/proc/self", os.O_RDONLY))
    files.sync(Path("/proc/self"))
    with pytest.raises(OSError, match="Invalid argument"):
        files.sync(Path("/proc/self/status"))


def test_no_link_is_followed_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "precious").write_text("precious")
    trap = tmp_path / ".x.trap.tmp"
    trap.symlink_to(tmp_path / "precious")
    monkeypatch.setattr(files, "temporary_name", lambda _: trap)
    with pytest.raises(FileExistsError):
        files.write_text(tmp_path / "x", "spoiled")
    assert (tmp_path / "precious").read_text() == "precious"
