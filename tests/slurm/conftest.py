"""A SLURM for the session, and runs for it: prepared where there is a network, run where there is none."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from Bio import SeqIO
from cluster import Cluster, OnCluster, cluster, missing
from workflow import MODEL, ROOT, Workspace

Once = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(reason)
    with cluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


@pytest.fixture(scope="session")
def few(once: Once) -> Workspace:
    """Short proteins of the demo for three jobs of many shards each, the weights brought where there is a network."""

    def fetch(directory: Path) -> None:
        work = Workspace(directory)
        with (ROOT / "config/demo/demo_a.fasta").open() as file:
            short = [record for record in SeqIO.parse(file, "fasta") if len(record) <= 300]
        SeqIO.write(short, work.root / "few.fasta", "fasta")
        work.write_samples([("few", "few.fasta")])
        models = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text())["models"]
        work.write_config(models, sharding={"target_minutes": 0.002}, workers={"max_jobs": 3})
        work.run("--", f"results/models/{MODEL}.json")

    return Workspace(once("few", fetch))


@pytest.fixture(scope="session")
def local(few: Workspace, once: Once) -> Workspace:
    """The same, run to its end without a cluster."""
    return Workspace(once("local", lambda directory: finish(few, directory)))


@pytest.fixture(scope="session")
def planned(few: Workspace, once: Once) -> Workspace:
    """The same for two jobs, so that both run at once, up to the plan."""

    def plan(directory: Path) -> None:
        work = few.copy(directory)
        work.change_config(lambda config: config["workers"].update(max_jobs=2))
        work.run("--", "results/plan")

    return Workspace(once("planned", plan))


def finish(work: Workspace, directory: Path) -> None:
    work.copy(directory).run("--set-threads", "embed=1")


@pytest.fixture
def start(slurm: Cluster, tmp_path: Path) -> Callable[[Workspace], OnCluster]:
    """A copy of a workspace, on the cluster."""
    return lambda work: OnCluster(work.copy(tmp_path / "work").root, cluster=slurm)
