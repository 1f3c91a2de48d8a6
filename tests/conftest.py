"""Shared fixtures: learned weights, real proteins, tiny checkpoints and runs of the workflow."""

import gzip
import multiprocessing
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import warm
import yaml
from Bio import SeqIO
from filelock import FileLock

# Before torch is imported: on a busy machine, OpenMP threads that spin while they wait take a hundred times longer.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before anything imports Triton, whose kernels its interpreter runs then; a GPU runs them itself (tests/gpu).
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A shell that starts the tests in the background has SIGINT ignored, by them and by all that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from esmflow.model.fetch import fetch
from workflow import FULL_SIZE

# Hypothesis times no test, and draws the same each time, but at full size.
hypothesis.settings.register_profile("esmflow", hypothesis.settings.get_profile("ci"), derandomize=not FULL_SIZE)
hypothesis.settings.load_profile("esmflow")

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build"
DEMO = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text())["models"]["esm2_8M"]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """A directory of that name which is filled once, by whichever of pytest's processes comes first."""
    top = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        top = top.parent

    def get(name: str, fill: Callable[[Path], None]) -> Path:
        directory, done = top / name, top / f"{name}.done"
        with FileLock(top / f"{name}.lock"):
            if not done.exists():
                directory.mkdir()
                fill(directory)
                done.touch()
        return directory

    return get


@pytest.fixture(scope="module")
def forked_pools() -> Iterator[None]:
    """Pools that tests make in their own process fork theirs, where how these begin is not what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", lambda _: warm.CONTEXT)
        yield


@pytest.fixture(scope="session")
def esm2_8m() -> Path:
    """An ESM-2 8M with learned weights, in Hugging Face layout."""
    descriptor = fetch("esm2_8M", DEMO["weights"], BUILD / "weights", sha256=DEMO["sha256"])
    return Path(descriptor.files[0])


@pytest.fixture(scope="session")
def uniprot() -> list[str]:
    """Real proteins: 20,000 of Debian's mmseqs2-examples, or where that cannot be had, those of the demo."""
    name = Path("usr/share/doc/mmseqs2/example-data/DB.fasta.gz")
    places = [Path("/") / name, BUILD / "debian" / name]
    BUILD.mkdir(exist_ok=True)
    with FileLock(BUILD / "debian.lock"):
        if not any(map(Path.exists, places)) and shutil.which("apt-get") and shutil.which("dpkg-deb"):
            (BUILD / "debian").mkdir(exist_ok=True)
            subprocess.run(["apt-get", "download", "mmseqs2-examples"], cwd=BUILD, capture_output=True, check=False)
            for package in BUILD.glob("mmseqs2-examples_*.deb"):
                subprocess.run(["dpkg-deb", "-x", package, BUILD / "debian"], check=True)
    found = [path for path in places if path.exists()]
    source = found[0] if found else ROOT / "config" / "demo" / "demo_b.fasta.gz"
    with gzip.open(source, "rt") as file:
        sequences = [str(record.seq).upper() for record in SeqIO.parse(file, "fasta")]
    return [sequence for sequence in sequences if sequence.isalpha() and "J" not in sequence]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() or not mount:
        pytest.skip("needs root and mount to make a small disk")
    if subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "none", disk], check=False).returncode:
        pytest.skip("this machine does not let us mount a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)
