"""The report as a browser shows it: nothing fetched, nothing complained of, and what it says is so."""

import base64
import html
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import plotly.io
import pyarrow.parquet as pq
import pytest
import reference
from esmflow.report.maps import draw, pca
from in_process import call
from playwright.sync_api import Browser, Page, sync_playwright
from random_residues import LETTERS, residues
from sklearn.decomposition import PCA
from workflow import Entry, Workspace, error_line, matrix, plain

MODEL, TABLE = "tiny", "layer3.mean"
HOSTILE = "<img/src=x/onerror=alert(1)>&amp;\"'</script>"
#: Chromium as root needs its sandbox off; the rest keeps it from calls home, which are none of the page's.
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if not program:
        pytest.skip("no Chromium to show the report in")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=QUIET)
        yield started
        started.close()


@dataclass
class Shown:
    """A page that is open, and what went on beside it."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def open(self, path: Path) -> None:
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.goto(path.as_uri())

    def rows(self, section: str) -> list[list[str]]:
        """The cells of the first table below a heading, without its own headings."""
        table = self.page.locator(f"#{section} ~ table, #{section} ~ div > table").first
        return [row.locator("td").all_inner_texts() for row in table.locator("tr").all()[1:]]


@pytest.fixture
def shown(browser: Browser) -> Iterator[Shown]:
    page = browser.new_page()
    yield Shown(page)
    page.close()


@pytest.fixture(scope="module")
def reported(once: Callable[[str, Callable[[Path], None]], Path]) -> Workspace:
    """Two samples with vectors and likelihoods; the first protein's name does harm where it is not escaped."""
    proteins = [residues(9 + number, number) for number in range(30)]
    entries = {
        "a": [plain(HOSTILE, proteins[0]), *(plain(f"p{n}", proteins[n]) for n in range(1, 24))],
        "b": [plain(f"q{n}", proteins[n]) for n in range(8, 30)],
    }
    entries["a"][3:3] = [Entry("gap", "MK-V", reason="gap"), Entry("digit", "MK1"), Entry("gap_again", "-")]
    entries["a"] += [plain("p20", proteins[2]), plain("other_name", proteins[3])]
    entries["b"].append(Entry("bad", "MK-V", reason="gap"))

    def run(directory: Path) -> None:
        work = Workspace(directory)
        reference.tiny_esm2(work.root / "tiny.pt")
        work.write_samples([(sample, work.write_fasta(f"{sample}.fasta", own)) for sample, own in entries.items()])
        names = ["mean", "likelihoods", "masked_marginals", "wt_marginals"]
        work.write_config({MODEL: {"weights": "tiny.pt", "representations": names}})
        work.run("--", "report")

    return Workspace(once("reported", run))


def page_of(work: Workspace) -> Path:
    return work.root / "results/report/index.html"


def test_the_page_needs_nothing_else_and_draws_every_plot(reported: Workspace, shown: Shown) -> None:
    shown.open(page_of(reported))
    plots = shown.page.locator(".plotly-graph-div")
    names = [plot.get_attribute("id") for plot in plots.all()]
    assert names == ["lengths", "seconds", "balance", "map0-pca", "map0-umap", "perplexity0", "marginals0"]
    shown.page.locator("#marginals0 .hm image").wait_for(state="attached")
    for name in names[:-1]:
        marks = shown.page.locator(f"#{name} :is(.bars .point path, path.point)")
        marks.first.wait_for(state="attached")
        sizes = marks.evaluate_all("paths => paths.map(path => path.getAttribute('d').length)")
        assert sizes
        assert all(sizes)
    assert shown.requests == [page_of(reported).as_uri()]
    assert shown.complaints == []


def test_a_point_under_the_mouse_tells_its_protein(reported: Workspace, shown: Shown) -> None:
    lengths = {
        (sample, row.id): row.length
        for sample in ("a", "b")
        for row in reported.table(sample, MODEL, TABLE).itertuples(index=False)
    }
    shown.open(page_of(reported))
    for kind in ("pca", "umap"):
        points = shown.page.locator(f"#map0-{kind} .scatterlayer .point")
        points.first.wait_for(state="attached")
        shown.page.locator(f"#map0-{kind}").scroll_into_view_if_needed()
        points.nth(7).hover(force=True)
        text = shown.page.locator(f"#map0-{kind} .hoverlayer .hovertext").first.text_content()
        found = re.search(r"(\S+?)([ab]): ([\d,]+) residues", text or "")
        assert found, text
        assert lengths[found[2], found[1]] == int(found[3].replace(",", ""))


def test_the_map_can_be_coloured_by_length(reported: Workspace, shown: Shown) -> None:
    shown.open(page_of(reported))
    points = shown.page.locator("#map0-pca .scatterlayer path.point")
    points.first.wait_for(state="attached")
    colours = "paths => new Set(paths.map(path => getComputedStyle(path).fill)).size"
    assert points.evaluate_all(colours) == 2
    shown.page.locator("#map0-pca .updatemenu-button").nth(1).click()
    shown.page.locator("#map0-pca .colorbar").wait_for(state="attached")
    lengths = {length for sample in ("a", "b") for length in reported.table(sample, MODEL, TABLE)["length"]}
    assert points.evaluate_all(colours) > len(lengths) / 4


def test_its_numbers_are_those_of_the_status_files_and_receipts(reported: Workspace, shown: Shown) -> None:
    shown.open(page_of(reported))
    rows = {row[0]: row[1:] for row in shown.rows("samples")}
    assert rows.keys() == {"a", "b"}
    for sample, (records, embedded, skipped, why) in rows.items():
        status = reported.status(sample)
        reasons = Counter(status.loc[status["status"] == "skipped", "reason"])
        assert int(records) == len(status)
        assert int(embedded) == (status["status"] == "embedded").sum()
        assert int(skipped) == reasons.total()
        assert (
            Counter({reason: int(count) for count, _, reason in (line.partition(" ") for line in why.splitlines())})
            == reasons
        )
    [(name, receipt)] = reported.receipts().items()
    [row] = shown.rows("jobs")
    assert row[0] == name
    assert int(row[2]) == receipt["sequences"]
    assert float(row[3]) == round(receipt["figures"]["seconds"], 1)
    assert row[5] == f"{receipt['figures']['pack_fill']:.1%}"
    [row] = shown.rows("numerics")
    assert row[:2] == [MODEL, "cpu"]
    assert row[6] == f"{receipt['models'][MODEL]['self_check']['largest_difference']:.1e}"
    weights = json.loads((reported.root / f"results/models/{MODEL}.json").read_text())
    assert weights["sha256"] in shown.rows("provenance")[0]
    assert "unknown" in shown.rows("provenance")[0]


def test_the_neighbours_are_the_nearest(reported: Workspace, shown: Shown) -> None:
    tables = pd.concat([reported.table(sample, MODEL, TABLE).assign(sample=sample) for sample in ("a", "b")])
    vectors = matrix(tables).astype(np.float64)
    names = [f"{row.id} ({row.sample})" for row in tables.itertuples()]
    shown.open(page_of(reported))
    rows = shown.page.locator("h3:text-is('Nearest neighbours') ~ table").first.locator("tr").all()[1:]
    query = -1
    for number, row in enumerate(rows):
        *first, near, _, cosine = row.locator("td").all_inner_texts()
        if first:
            # An ID may occur more than once; the row that is meant has such a nearest neighbour.
            query = next(
                place
                for place, name in enumerate(names)
                if name == first[0] and abs(_nearest(vectors, place)[0] - float(cosine)) < 1e-4
            )
            assert number % 5 == 0
        expected = _nearest(vectors, query)[number % 5]
        assert abs(float(cosine) - expected) < 1e-4
        found = [_cosine(vectors[query], vectors[place]) for place, name in enumerate(names) if name == near]
        assert min(abs(value - expected) for value in found) < 1e-4


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


def _nearest(vectors: np.ndarray, query: int) -> list[float]:
    return sorted((_cosine(vectors[query], v) for place, v in enumerate(vectors) if place != query), reverse=True)


def test_names_are_shown_as_they_are_and_do_nothing(reported: Workspace, shown: Shown) -> None:
    shown.open(page_of(reported))
    assert any(cells[0] == f"{HOSTILE} (a)" for cells in shown.rows("map-1"))
    points = shown.page.locator("#map0-pca .scatterlayer .point")
    points.first.wait_for(state="attached")
    shown.page.locator("#map0-pca").scroll_into_view_if_needed()
    points.first.hover(force=True)
    text = shown.page.locator("#map0-pca .hoverlayer .hovertext").first.text_content() or ""
    assert text.startswith(HOSTILE)
    assert shown.complaints == []
    assert shown.requests == [page_of(reported).as_uri()]


def test_a_run_of_next_to_nothing_has_a_report(work: Workspace, shown: Shown) -> None:
    reference.tiny_esm2(work.root / "tiny.pt")
    work.write_samples(
        [("none", work.write_fasta("none.fasta", [])), ("one", work.write_fasta("one.fasta", [plain("p", "MKV")]))]
    )
    models = {"vectors": {"weights": "tiny.pt"}, "residues": {"weights": "tiny.pt", "representations": ["per_tok"]}}
    work.write_config(models)
    work.run("--", "report")
    shown.open(page_of(work))
    shown.page.locator("#lengths .bars .point path").first.wait_for(state="attached")
    assert {row[0]: row[1:4] for row in shown.rows("samples")} == {"none": ["0", "0", "0"], "one": ["1", "1", "0"]}
    assert shown.page.locator("h2:has-text('Map')").count() == 0
    assert shown.complaints == []


def test_a_run_that_is_not_done_has_none(work: Workspace) -> None:
    work.write_samples([("a", work.write_fasta("a.fasta", []))])
    arguments = [
        "--results",
        "results",
        "--samples",
        "samples.tsv",
        "--config",
        '{"models": {}}',
        "--page",
        "page.html",
    ]
    result = call("report", *arguments, cwd=work.root)
    assert result.returncode == 75
    assert "results/plan/plan.json: not there" in error_line(result)


def test_a_draw_is_of_rows_as_they_are_without_one_twice(reported: Workspace) -> None:
    features = reported.root / "results/features"
    tables = {sample: [features / sample / MODEL / f"{TABLE}.parquet"] for sample in ("a", "b")}
    whole = pd.concat([pd.read_parquet(paths[0]).assign(sample=sample) for sample, paths in tables.items()])
    everything, some = draw(tables), draw(tables, 40)
    assert everything
    assert some
    assert everything.records == some.records == len(whole)
    assert everything.ids == whole["id"].to_list()
    assert everything.samples == whole["sample"].to_list()
    assert np.array_equal(everything.vectors, matrix(whole))
    known = Counter(zip(everything.samples, everything.ids, map(bytes, everything.vectors), strict=True))
    drawn = Counter(zip(some.samples, some.ids, map(bytes, some.vectors), strict=True))
    assert drawn.total() == 40
    assert drawn <= known


def test_of_less_than_three_proteins_no_map_is_drawn(reported: Workspace, tmp_path: Path) -> None:
    table = pq.read_table(reported.root / "results/features/a" / MODEL / f"{TABLE}.parquet")
    paths = {rows: tmp_path / f"{rows}.parquet" for rows in (0, 2, 3)}
    for rows, path in paths.items():
        pq.write_table(table.slice(0, rows), path)
    assert draw({"none": [paths[0]], "two": [paths[2]]}) is None
    assert draw({"none": [paths[0]], "three": [paths[3]]})


def test_the_components_are_those_of_scikit_learn() -> None:
    vectors = np.random.default_rng(5).normal(size=(50, 7)).astype(np.float32) * np.arange(1, 8, dtype=np.float32)
    place, (across, up) = pca(vectors)
    expected = PCA(2)
    assert np.allclose(np.abs(place), np.abs(expected.fit_transform(vectors)), atol=1e-4)
    first, second = expected.explained_variance_ratio_
    assert (across, up) == (f"PC 1 ({first:.1%} of the variance)", f"PC 2 ({second:.1%})")


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


def test_the_histogram_counts_each_record_of_each_sample(reported: Workspace) -> None:
    traces = drawn(page_of(reported), "perplexity0")
    assert [trace["name"] for trace in traces] == ["a", "b"]
    for trace in traces:
        table = pd.read_parquet(reported.root / f"results/likelihoods/{trace['name']}/tiny.parquet")
        assert numbers(trace["y"]).sum() == len(table) == len(reported.table(trace["name"], MODEL, TABLE))
        middles = np.repeat(numbers(trace["x"]), numbers(trace["y"]))
        assert np.abs(np.log(middles / np.sort(table["masked_perplexity"]))).max() < 0.2


def test_the_heat_map_has_the_masked_marginals_of_the_first_record(reported: Workspace) -> None:
    [trace] = drawn(page_of(reported), "marginals0")
    with h5py.File(reported.root / "results/residues/a/tiny/layer3.masked_marginals.h5") as file:
        first, stop = file["offsets"][file["sequence"][0] :][:2]
        expected = file["marginals"][first:stop]
    assert np.allclose(numbers(trace["z"]), expected.T)
    assert list(trace["y"]) == list(LETTERS)
    assert numbers(trace["x"]).tolist() == list(range(1, 10))


def test_the_text_tells_whose_marginals_they_are(reported: Workspace) -> None:
    page = page_of(reported).read_text()
    assert f"Marginals of {HOSTILE}" in html.unescape(page)
    assert HOSTILE not in page
    assert "each residue masked in turn" in page
