"""Parts of a run that are asked for by name."""

import pytest
import reference
from workflow import Workspace, error_line, plain


@pytest.fixture
def fresh(work: Workspace) -> Workspace:
    """Two samples, of which one is no FASTA."""
    reference.tiny_esm2(work.root / "tiny.pt")
    (work.root / "broken.fasta").write_text("no FASTA\n")
    proteins = [plain("p", "MKTAYIAKQR"), plain("q", "MSILVTRPSP")]
    work.write_samples([("a", work.write_fasta("a.fasta", proteins)), ("broken", "broken.fasta")])
    work.write_config({"tiny": {"weights": "tiny.pt"}})
    return work


def test_a_part_of_a_run_is_made_by_its_name_and_ends_well_only_if_it_is_whole(fresh: Workspace) -> None:
    result = fresh.run("--keep-going", "--until", "features", check=False)
    assert result.returncode == 1
    assert "sample broken" in next(line for line in result.stderr.splitlines() if "error: " in line)
    assert fresh.table("a", "tiny", "layer3.mean")["id"].to_list() == ["p", "q"]
    assert not (fresh.root / "results/status").exists()
    fresh.write_samples([("a", "a.fasta")])
    assert fresh.run("--", "features", "status").returncode == 0
    assert fresh.status("a")["status"].to_list() == ["embedded"] * 2


@pytest.mark.parametrize("cut", [["--until", "feature_table"], ["--omit-from", "status"], ["--batch", "all=1/2"]])
def test_an_option_that_would_cut_off_what_only_the_plan_tells_is_refused(fresh: Workspace, cut: list[str]) -> None:
    result = fresh.run("--dry-run", *cut, check=False)
    assert result.returncode == 78
    line = error_line(result)
    assert cut[0] in line
    assert "features" in line
    assert "status" in line
    assert not (fresh.root / "results").exists()
