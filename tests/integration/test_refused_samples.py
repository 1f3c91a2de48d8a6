"""Samples of which a file cannot be used: all others are made in the same run, which fails with a line for each."""

import gzip
import random
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import reference
from workflow import Workspace, error_line, script, worst_error, written_times

Run = subprocess.CompletedProcess[str]
Broken = tuple[Workspace, Run]
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
GOOD = ["first", "last"]
#: What is made of a good FASTA file, and what the line says of it.
BROKEN: dict[str, tuple[Callable[[str], bytes], str]] = {
    "cut": (lambda fasta: gzip.compress(fasta.encode())[:-12], "cut short or damaged"),
    "page": (lambda fasta: b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n", "HTML"),
    "genes": (lambda fasta: b">g1\n" + b"ACGT" * 20 + b"\n>g2\n" + b"TTGACA" * 20 + b"\n", "nucleotides"),
    "invalid": (lambda fasta: f"{fasta}>odd\nMKV1\n".encode(), "1 of 4 records are invalid, the first is"),
    "unreadable": (str.encode, "unreadable.fa: cannot be read (Input/output error)"),
}
#: Their place in the sheet.
ORDER = ["first", "cut", "page", "genes", "invalid", "unreadable", "last"]


def proteins(sample: str) -> dict[str, str]:
    draw = random.Random(sample)
    return {f"{sample}{number}": "".join(draw.choices(LETTERS, k=40)) for number in range(3)}


def fasta(sample: str) -> str:
    return "".join(f">{name}\n{residues}\n" for name, residues in proteins(sample).items())


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Broken:
    """A run of two good samples and five broken ones, one job at a time."""
    work = Workspace(tmp_path_factory.mktemp("broken"))
    reference.tiny_esm2(work.root / "tiny.pt")
    for sample in ORDER:
        spoil = BROKEN[sample][0] if sample in BROKEN else str.encode
        (work.root / f"{sample}.fa").write_bytes(spoil(fasta(sample)))
    (work.root / "unreadable.fa").unlink()
    # A regular file whose first byte is an input/output error, for root as well.
    (work.root / "unreadable.fa").symlink_to("/proc/self/mem")
    work.write_samples((sample, f"{sample}.fa") for sample in ORDER)
    work.write_config({"tiny": {"weights": "tiny.pt"}}, invalid="fail", exports=["csv"])
    return work, work.run("--cores", "1", check=False)


@pytest.fixture
def copied(broken: Broken, tmp_path: Path) -> Workspace:
    return broken[0].copy(tmp_path / "copy")


def errors(result: Run) -> list[str]:
    """What a run that failed says of it, after the time of each line."""
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    return [line.split("error: ", 1)[1] for line in result.stderr.splitlines() if "error: " in line]


def assert_told(result: Run, *samples: str) -> None:
    lines = errors(result)
    assert "exit status 65" in result.stderr
    assert [line.partition(": ")[0] for line in lines] == [f"sample {sample}" for sample in samples]
    for sample, line in zip(samples, lines, strict=True):
        assert f"{sample}.fa" in line
        assert BROKEN[sample][1] in line


def jobs(result: Run) -> Counter[str]:
    """The jobs that a run began, by their rules."""
    return Counter(re.findall(r"^(?:local)?(?:rule|checkpoint) (\w+):$", result.stderr, flags=re.MULTILINE))


def made(work: Workspace) -> dict[Path, tuple[int, int]]:
    """All that a run makes but the plan and what is told of it, with what tells that it was not written again."""
    kept = (
        path for path in work.files("results") if {"plan", "made_for"}.isdisjoint(path.relative_to(work.root).parts)
    )
    return written_times(
        path for path in [*kept, *work.store_files()] if path.suffix != ".tsv" or "status" in str(path)
    )


def assert_complete(work: Workspace, *samples: str) -> None:
    model = reference.tiny_esm2(work.root / "tiny.pt")
    for sample in samples:
        own = proteins(sample)
        table = work.table(sample, "tiny", "layer3.mean")
        assert table["id"].to_list() == list(own)
        represent = lambda residues: reference.represent(model, residues)  # noqa: E731
        assert worst_error(table, list(own.values()), represent, 3, "mean") <= 1e-5
        assert work.status(sample)["status"].to_list() == ["embedded"] * len(own)
    for part in ("features", "exports", "status"):
        assert sorted(path.stem for path in (work.root / "results" / part).iterdir()) == sorted(samples)


def test_all_other_samples_are_made_and_each_broken_one_is_told_of(
    broken: Broken,
) -> None:
    work, result = broken
    assert_told(result, *(sample for sample in ORDER if sample in BROKEN))
    assert_complete(work, *GOOD)


def test_a_run_with_nothing_mended_fails_alike_and_computes_nothing(copied: Workspace) -> None:
    before = made(copied)
    result = copied.run(check=False)
    assert_told(result, *(sample for sample in ORDER if sample in BROKEN))
    assert jobs(result) == {"refused": 1}
    assert made(copied) == before


def test_once_some_are_mended_only_these_are_made_and_one_that_breaks_again_is_mended_from_the_store(
    copied: Workspace,
) -> None:
    before = made(copied)
    for sample in ("cut", "genes"):
        (copied.root / f"{sample}.fa").write_text(fasta(sample))
    result = copied.run(check=False)
    assert_told(result, "page", "invalid", "unreadable")
    each = dict.fromkeys(["ingest", "feature_table", "export_csv", "status_file"], 2)
    assert jobs(result) == each | {"plan": 1, "embed": 1, "refused": 1}
    others = {path: times for path, times in before.items() if path.stem not in ("cut", "genes")}
    assert {path: times for path, times in made(copied).items() if path in others} == others
    [receipt] = [receipt for name, receipt in copied.receipts().items() if name not in map(stem, before)]
    assert receipt["sequences_computed"] == len(proteins("cut") | proteins("genes"))

    (copied.root / "genes.fa").write_bytes(BROKEN["genes"][0](""))
    receipts = copied.receipts()
    result = copied.run(check=False)
    assert_told(result, "page", "genes", "invalid", "unreadable")
    assert jobs(result) == {"ingest": 1, "plan": 1, "refused": 1}
    summary = script("summary", "results", cwd=copied.root).stdout
    assert "cut: 3 records" in summary
    assert "genes: 3 records" not in summary
    (copied.root / "genes.fa").write_text(fasta("genes"))
    usable = [*GOOD, "cut", "genes"]
    copied.write_samples((sample, f"{sample}.fa") for sample in usable)
    copied.run()
    assert_complete(copied, *usable)
    assert copied.receipts() == receipts


def stem(path: Path) -> str:
    return path.stem


def test_what_is_asked_of_a_broken_sample_by_name_fails_with_its_line(copied: Workspace) -> None:
    targets = ["results/status/page.tsv", "results/features/cut/tiny/layer3.mean.parquet"]
    result = copied.run("--keep-going", *targets, check=False)
    assert sorted(line.partition(": ")[0] for line in errors(result)) == ["sample cut", "sample page"]
    assert result.stderr.count("exit status 65") == 2
    assert not any((copied.root / target).exists() for target in targets)


def test_summary_report_preflight_and_watch_name_what_is_left_out(broken: Broken, tmp_path: Path) -> None:
    work, told = broken[0], errors(broken[1])
    summary = script("summary", "results", cwd=work.root).stdout.splitlines()
    assert [line.split(": ", 1)[1] for line in summary if line.startswith("left out: ")] == told
    assert [line.partition(":")[0] for line in summary if " records, " in line] == sorted(GOOD)
    preflight = script("preflight", "--results", "results", "--store", "store", cwd=work.root).stdout
    assert [line.split(": ", 1)[1] for line in preflight.splitlines() if line.startswith("left out: ")] == told
    assert f"{len(BROKEN)} samples left out" in script("watch", "results", "--once", cwd=work.root).stdout
    copied = work.copy(tmp_path / "copy")
    copied.run("--", "report")
    page = (copied.root / "results/report/index.html").read_text()
    for sample, line in zip(BROKEN, told, strict=True):
        assert re.search(rf'<td class="k">{sample}</td><td>sample {sample}: ', page)
        assert BROKEN[sample][1] in line


def test_a_run_of_broken_samples_alone_fails_with_their_lines(broken: Broken, tmp_path: Path) -> None:
    work = broken[0].copy_inputs(tmp_path / "alone")
    work.write_samples((sample, f"{sample}.fa") for sample in ("page", "cut"))
    assert_told(work.run(check=False), "page", "cut")
    assert work.table_files() == []
    assert script("summary", "results", cwd=work.root).stdout.count("left out: ") == 2


def test_an_ingest_by_hand_fails_at_once(broken: Broken) -> None:
    arguments = ["--sample", "page", "--catalog", "hand/c.parquet", "--sequences", "hand/s.parquet", "page.fa"]
    result = script("ingest", *arguments, cwd=broken[0].root)
    assert result.returncode == 65
    assert "sample page: page.fa: is HTML" in error_line(result)
    assert not (broken[0].root / "hand").exists() or not list((broken[0].root / "hand").iterdir())
