"""A SLURM with accounts and a database of its jobs, in which the profile is used as most sites use it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import ACCOUNT, Cluster, OnCluster, cluster
from cluster_runs import assert_complete
from workflow import Workspace


@pytest.fixture
def accounting(slurm: Cluster, tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path / "cluster", accounting=True) as started:
        yield started


def test_jobs_are_charged_to_the_account_and_followed_by_sacct(
    accounting: Cluster, planned: Workspace, local: Workspace, tmp_path: Path
) -> None:
    work = OnCluster(planned.copy(tmp_path / "work").root, cluster=accounting)
    weights, aside = work.root / "store" / "weights", work.root / "aside"
    weights.rename(aside)
    assert work.run("--slurm-status-command", "sacct", "--retries", "0", check=False).returncode == 1
    aside.rename(weights)
    work.run("--slurm-status-command", "sacct")
    assert_complete(work, local)
    lines = accounting.run("sacct", "--allocations", "--noheader", "--parsable2", "--format=Account,State").splitlines()
    assert lines == [f"{ACCOUNT}|FAILED"] * 2 + [f"{ACCOUNT}|COMPLETED"] * 2
