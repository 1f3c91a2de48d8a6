"""Names in exports, and the export of a directory when it is killed."""

import json
import runpy
import string
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from esmflow.config.check import check_config
from esmflow.errors import ConfigError
from esmflow.model.fetch import fetch
from esmflow.tables.exports import EXPORTS, safe_name
from hypothesis import given
from hypothesis import strategies as st
from in_process import call
from workflow import ROOT, wait_until

LABELS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("./%#-~"), min_size=1, max_size=80)


@given(LABELS)
def test_a_name_leads_nowhere_and_gives_the_label_back(label: str) -> None:
    name = safe_name(label)
    assert not set(name) & set("/\0\n\r\t")
    assert name not in {"", ".", ".."}
    assert len(f"{name}.pt".encode()) <= 255
    if "%+" not in name:
        assert unquote(name, errors="strict") == label


@given(LABELS, LABELS, st.integers(1, 100_000), st.integers(1, 100_000))
def test_no_two_records_have_the_same_name(one: str, other: str, first: int, second: int) -> None:
    assert (safe_name(one, first) == safe_name(other, second)) == ((one, first) == (other, second))


@given(st.text(string.ascii_letters + string.digits + " |_=.#()[]'\",;:&+~!$-", min_size=1, max_size=200))
def test_usual_labels_stay_as_they_are(label: str) -> None:
    if label.strip("."):
        assert safe_name(label) == label


def test_a_name_too_long_for_a_file_is_cut_and_stays_its_own() -> None:
    one, other = safe_name("ä" * 300 + "1"), safe_name("ä" * 300 + "2")
    assert one != other
    assert one.startswith("ä" * 90)
    assert max(len(f"{name}%-100000.pt".encode()) for name in (one, other)) <= 255


def test_an_export_that_could_hold_nothing_is_refused() -> None:
    model = {"weights": "fair-esm", "representations": ["max", "logits"]}
    config = {"samples": "samples.tsv", "models": {"esm2_t6_8M_UR50D": model}}
    assert check_config(config | {"exports": ["csv"]})["exports"] == ["csv"]
    with pytest.raises(ConfigError, match="exports: fair_esm_pt is of mean, bos, per_tok, contacts, and no model"):
        check_config(config | {"exports": ["csv", "fair_esm_pt"]})


def test_the_documentation_lists_each_export_with_its_files_and_representations() -> None:
    rows = [line.strip("| ").split(" | ") for line in (ROOT / "docs" / "exports.md").read_text().splitlines()]
    listed = {row[0].strip("`"): row[1:] for row in rows if len(row) == 3 and row[0].startswith("`")}
    assert list(listed) == list(EXPORTS)
    for name, export in EXPORTS.items():
        files, representations = listed[name]
        assert representations == (", ".join(export.representations) or "any")
        for layout in export.layouts:
            assert all(f"`{path}" in files or f"`{Path(path).name}" in files for path in layout.paths)


def test_a_directory_that_is_there_survives_a_killed_export(
    esm2_8m: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptor = tmp_path / "model.json"
    fetch("m", str(esm2_8m), tmp_path).save(descriptor)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    runpy.run_path(str(ROOT / "benchmarks" / "exports.py"))["write_sample"](descriptor, tmp_path, 2000)
    spec = {"layers": [-1], "representations": ["mean"], "long_sequences": "skip", "max_length": 1022}
    spec |= {"window_overlap": 0, "precision": "fp32"}
    target = tmp_path / "exports" / "fair_esm_pt"
    target.mkdir(parents=True)
    (target / "old.pt").touch()
    options = ["--format", "fair_esm_pt", "--model", "m", "--catalog", tmp_path / "catalog.parquet"]
    options += ["--descriptor", descriptor, "--store", tmp_path / "store", "--spec", json.dumps(spec), "--", target]
    command = [sys.executable, ROOT / "scripts" / "export.py", *options]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as export:
        wait_until(lambda: any(target.parent.glob(".*.tmp/*.pt")), export)
        export.kill()
    assert export.returncode == -9
    assert [path.name for path in target.iterdir()] == ["old.pt"]
    assert call("export", *options, cwd=tmp_path).returncode == 0
    assert len(list(target.glob("sp|S*.pt"))) == len(list(target.iterdir())) == 2000
    assert list(target.parent.iterdir()) == [target]
