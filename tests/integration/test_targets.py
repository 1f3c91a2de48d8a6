"""Parts of a run that are asked for by name."""

from pathlib import Path

import pytest
from tiny_run import SAMPLES, assert_right
from workflow import Workspace, error_line


@pytest.fixture
def fresh(tiny_run: Workspace, tmp_path: Path) -> Workspace:
    """Two samples, of which one is no FASTA."""
    work = tiny_run.copy_inputs(tmp_path / "fresh")
    (work.root / "broken.fasta").write_text("no FASTA\n")
    work.write_samples([("a", "a.fasta"), ("broken", "broken.fasta")])
    return work


def test_a_part_of_a_run_is_made_by_its_name_and_ends_well_only_if_it_is_whole(fresh: Workspace) -> None:
    result = fresh.run("--keep-going", "--until", "features", check=False)
    assert result.returncode == 1
    assert "sample broken" in next(line for line in result.stderr.splitlines() if "error: " in line)
    assert fresh.table("a", "one", "layer3.mean")["id"].to_list() == [entry.id for entry in SAMPLES["a"]]
    assert not (fresh.root / "results/status").exists()
    fresh.write_samples([("a", "a.fasta")])
    assert fresh.run("--", "features", "status").returncode == 0
    assert_right(fresh)


@pytest.mark.parametrize("cut", [["--until", "feature_table"], ["--omit-from", "status"], ["--batch", "all=1/2"]])
def test_an_option_that_would_cut_off_what_only_the_plan_tells_is_refused(fresh: Workspace, cut: list[str]) -> None:
    before = fresh.files("results")
    result = fresh.run("--dry-run", *cut, check=False)
    assert result.returncode == 78
    line = error_line(result)
    assert cut[0] in line
    assert "features" in line
    assert "status" in line
    assert fresh.files("results") == before
