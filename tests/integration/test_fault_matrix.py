"""A small draw of the fault matrix, whose full size takes an hour; and what its library alone shows."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from workflow import ENVIRONMENT, ROOT

pytestmark = pytest.mark.skipif(
    not shutil.which("gcc") or sys.platform != "linux", reason="needs gcc and Linux to let calls fail"
)
MATRIX = ROOT / "tests" / "fault_matrix"


def test_kills_flips_and_failing_calls_lose_and_spoil_nothing() -> None:
    sizes = ["--kills", "2", "--flips", "3", "--calls", "4", "--records", "6", "--seed", "5"]
    done = subprocess.run([sys.executable, MATRIX, *sizes], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout)
    assert (counts["kills"], counts["flips"], counts["calls"]) == (2, 3, 4)
    assert not any(counts[name] for name in ("lost", "doubled", "wrong", "silent", "tracebacks", "left"))


@pytest.mark.parametrize(("opened", "written"), [("h5py.File('x.h5', 'w')", False), ("writing(Path('x.h5'))", True)])
def test_hdf5_is_written_where_files_cannot_be_locked(tmp_path: Path, opened: str, written: bool) -> None:
    """As by Lustre and NFS without a daemon for locks; HDF5 by itself ends there."""
    library, counts = tmp_path / "failing_calls.so", tmp_path / "counts"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, MATRIX / "failing_calls.c", "-ldl"], check=True)
    counts.write_bytes(bytes(1024))
    imports = "import h5py; from pathlib import Path; from esmflow.tables.hdf5 import writing"
    code = f"{imports}\nwith {opened} as h5: h5['a'] = 1"
    place = {"LD_PRELOAD": str(library), "FAULT_BELOW": str(tmp_path), "FAULT_COUNTS": str(counts)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT | place | {"PYTHONPATH": str(ROOT / "scripts")},
    )
    assert (done.returncode == 0) is written, done.stderr
    assert written or "lock" in done.stderr
