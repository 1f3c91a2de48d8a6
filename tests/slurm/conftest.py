"""A SLURM for the session, and the demo: prepared where there is a network, run where there is none."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from Bio import SeqIO
from cluster import Cluster, OnCluster, cluster, missing
from workflow import MODEL, ROOT, Workspace


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(reason)
    with cluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


@pytest.fixture(scope="session")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The demo for three jobs, its weights brought where there is a network."""
    work = Workspace(tmp_path_factory.mktemp("fetched"))
    shutil.copytree(ROOT / "config" / "demo", work.root / "config" / "demo")
    config = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text())
    config |= {"results": "results", "store": "store", "sharding": {"target_minutes": 0.012}}
    config["workers"] = {"max_jobs": 3, "gpus_per_job": 0}
    (work.root / "config.yaml").write_text(yaml.safe_dump(config))
    work.run("--", f"results/models/{MODEL}.json")
    return work


@pytest.fixture(scope="session")
def demo(fetched: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The demo, run to its end without a cluster."""
    return finished(fetched, tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="session")
def few(fetched: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Some short proteins of the demo, for three jobs of many shards each."""
    work = fetched.copy(tmp_path_factory.mktemp("few") / "work")
    with (work.root / "config/demo/demo_a.fasta").open() as file:
        short = [record for record in SeqIO.parse(file, "fasta") if len(record) <= 300]
    SeqIO.write(short, work.root / "few.fasta", "fasta")
    work.write_samples([("few", "few.fasta")])
    work.change_config(lambda config: config.update(samples="samples.tsv", sharding={"target_minutes": 0.002}))
    return work


@pytest.fixture(scope="session")
def local(few: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The same, run to its end without a cluster."""
    return finished(few, tmp_path_factory.mktemp("local"))


@pytest.fixture(scope="session")
def planned(few: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The same for two jobs, so that both run at once, up to the plan."""
    work = few.copy(tmp_path_factory.mktemp("planned") / "work")
    work.change_config(lambda config: config["workers"].update(max_jobs=2))
    work.run("--", "results/plan")
    return work


def finished(work: Workspace, directory: Path) -> Workspace:
    result = work.copy(directory / "work")
    result.run("--set-threads", "embed=1")
    return result


@pytest.fixture
def start(slurm: Cluster, tmp_path: Path) -> Callable[[Workspace], OnCluster]:
    """A copy of a workspace, on the cluster."""
    return lambda work: OnCluster(work.copy(tmp_path / "work").root, cluster=slurm)
