"""Weights that cannot be used stop their model alone."""

from pathlib import Path

from tiny_run import MODEL, assert_right
from workflow import Workspace, written_times


def test_weights_that_cannot_be_used_stop_their_model_alone_and_are_tried_again(
    tiny_run: Workspace, tmp_path: Path
) -> None:
    work = tiny_run.copy_inputs(tmp_path / "work")
    work.write_samples([("a", "a.fasta")])
    (work.root / "late.pt").write_bytes(b"no weights")
    work.change_config(lambda config: config.update(models={"late": MODEL | {"weights": "late.pt"}} | config["models"]))
    result = work.run(check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    [line] = [line for line in result.stderr.splitlines() if "error: " in line]
    assert "error: model late: late.pt: " in line
    assert [path.parent.name for path in work.table_files()] == ["one"]
    assert set(work.status("a")["status"]) == {"embedded"}

    before = written_times(work.table_files())
    (work.root / "late.pt").write_bytes((work.root / "one.pt").read_bytes())
    work.run()
    assert [path.parent.name for path in work.table_files()] == ["late", "one"]
    assert written_times(before) == before
    assert_right(work)
