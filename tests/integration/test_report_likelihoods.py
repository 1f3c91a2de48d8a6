"""The report's perplexities and marginals: what is drawn are the values of the tables."""

import base64
import json
import re
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import plotly.io
import pytest
import reference
from workflow import Workspace, plain

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    work = Workspace(tmp_path_factory.mktemp("report"))
    reference.tiny_esm2(work.root / "tiny.pt")
    draw = np.random.default_rng(0)
    rows = []
    for sample in ("a", "b"):
        entries = [plain(f"{sample}{n}<i>", "".join(draw.choice(list(LETTERS), 9 + n))) for n in range(6)]
        rows.append((sample, work.write_fasta(f"{sample}.fasta", entries)))
    work.write_samples(rows)
    names = ["likelihoods", "masked_marginals", "wt_marginals"]
    work.write_config({"tiny": {"weights": "tiny.pt", "representations": names}})
    work.run("--", "report")
    return work


def drawn(page: Path, name: str) -> list[dict[str, object]]:
    """The traces of a plot, read back as Plotly reads them."""
    text = page.read_text()
    start = re.search(rf'Plotly.newPlot\(\s*"{name}",\s*', text).end()
    traces, _ = json.JSONDecoder().raw_decode(text[start:])
    return plotly.io.from_json(json.dumps({"data": traces})).to_dict()["data"]


def numbers(values: object) -> np.ndarray:
    """Plotly writes arrays as base64 of their bytes."""
    if isinstance(values, dict):
        array = np.frombuffer(base64.b64decode(values["bdata"]), np.dtype(values["dtype"]))
        shape = [int(part) for part in str(values.get("shape", len(array))).split(",")]
        return array.reshape(shape)
    return np.array(values)


def test_the_histogram_counts_each_record_of_each_sample(work: Workspace) -> None:
    traces = drawn(work.root / "results/report/index.html", "perplexity0")
    assert [trace["name"] for trace in traces] == ["a", "b"]
    for trace in traces:
        table = pd.read_parquet(work.root / f"results/likelihoods/{trace['name']}/tiny.parquet")
        assert numbers(trace["y"]).sum() == len(table) == 6
        middles = np.repeat(numbers(trace["x"]), numbers(trace["y"]))
        assert np.abs(np.log(middles / np.sort(table["masked_perplexity"]))).max() < 0.2


def test_the_heat_map_has_the_masked_marginals_of_the_first_record(work: Workspace) -> None:
    [trace] = drawn(work.root / "results/report/index.html", "marginals0")
    with h5py.File(work.root / "results/residues/a/tiny/layer3.masked_marginals.h5") as file:
        first, stop = file["offsets"][file["sequence"][0] :][:2]
        expected = file["marginals"][first:stop]
    assert np.allclose(numbers(trace["z"]), expected.T)
    assert list(trace["y"]) == list(LETTERS)
    assert numbers(trace["x"]).tolist() == list(range(1, 10))


def test_the_text_tells_whose_marginals_they_are(work: Workspace) -> None:
    page = (work.root / "results/report/index.html").read_text()
    assert "Marginals of a0&lt;i&gt;" in page
    assert "each residue masked in turn" in page
