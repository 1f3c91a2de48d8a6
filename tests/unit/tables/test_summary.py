"""The summary of a run on standard output."""

from pathlib import Path

import pytest
from workflow import error_line, script


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_samples_are_told_with_their_skipped_records_and_their_own_tables(tmp_path: Path) -> None:
    header = "id\tlength\tstatus\treason\tflags\n"
    write(tmp_path / "status" / "b.tsv", f"{header}p\t3\tembedded\t\t\n")
    write(tmp_path / "status" / "a[1].tsv", f"{header}p\t3\tembedded\t\t\nq\t0\tskipped\tgap\t\nr\t0\tskipped\tgap\t\n")
    write(tmp_path / "features" / "a[1]" / "m" / "layer6.mean.parquet")
    write(tmp_path / "features" / "a1" / "m" / "layer6.max.parquet")
    write(tmp_path / "features" / "b" / "m" / "layer6.mean.parts" / "part-00000.parquet")
    result = script("summary", tmp_path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "a[1]: 3 records, 1 embedded, 2 skipped",
        "    2 gap",
        f"    {tmp_path}/features/a[1]/m/layer6.mean.parquet",
        "b: 1 records, 1 embedded, 0 skipped",
        f"    {tmp_path}/features/b/m/layer6.mean.parts",
    ]


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_a_directory_without_status_files_is_bad_configuration(tmp_path: Path, name: str) -> None:
    result = script("summary", name, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (78, "")
    assert f"{name}: has no status files; give the directory" in error_line(result)
