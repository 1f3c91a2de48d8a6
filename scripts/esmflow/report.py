"""The report: one page on what became of each record, what the jobs did, and how the proteins lie among each other.

It is made from the plan, the receipts, the status files and the feature tables, and needs no network to be looked at.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import plotly.graph_objects as go
import plotly.io
import pyarrow.parquet as pq
from plotly.offline import get_plotlyjs

from esmflow import __version__, database, files
from esmflow.descriptor import Descriptor
from esmflow.spec import ModelSpec, Output
from esmflow.store import metadata_of

#: Proteins in a map, drawn at random if there are more: as many as a browser moves with ease.
MAP_PROTEINS = 5000
#: Proteins whose neighbours are listed, and neighbours of each.
_QUERIES, _NEIGHBOURS = 8, 5
#: Samples with a colour of their own, and jobs in the table, the longest first.
_COLOURS, _JOBS = 10, 50
_TEMPLATES = Path(__file__).parent / "templates"
_LAYOUT = {"template": "plotly_white", "height": 420, "margin": {"l": 70, "r": 30, "t": 30, "b": 60}}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """What became of a sample's records."""

    name: str
    embedded: int
    skipped: dict[str, int]
    """Records by reason."""
    lengths: dict[int, int]
    """Embedded records by residues."""

    @property
    def records(self) -> int:
        """All of them."""
        return self.embedded + sum(self.skipped.values())


@dataclass(frozen=True)
class Drawn:
    """Proteins of a map: a random part of all samples' records that are embedded."""

    samples: list[str]
    ids: list[str]
    lengths: np.ndarray
    """int [proteins], in residues."""
    vectors: np.ndarray
    """float32 [proteins, embed_dim]."""
    records: int
    """Of how many they were drawn."""
    versions: dict[str, str]
    """Of what wrote the vectors."""


def write_report(
    results: Path, samples: Sequence[str], specs: Sequence[ModelSpec], config: Mapping[str, Any], page: Path
) -> None:
    """Write the page. config: what the user configured, to be shown as it is."""
    plan = json.loads((results / "plan" / "plan.json").read_text(encoding="utf-8"))
    outcomes = read_statuses(results / "status", samples)
    receipts = [
        json.loads((results / "receipts" / f"{name}.json").read_text(encoding="utf-8"))
        for name in sorted(set().union(*plan["tables"].values()))
    ]
    receipts.sort(key=lambda receipt: -receipt["figures"]["seconds"])
    figures: dict[str, go.Figure] = {"lengths": _lengths(outcomes)}
    if receipts:
        figures |= {"seconds": _seconds(receipts), "balance": _balance(receipts)}
    models = []
    for number, spec in enumerate(specs):
        descriptor = Descriptor.load(results / "models" / f"{spec.name}.json")
        output = map_output(spec, descriptor)
        model: dict[str, Any] = {"name": spec.name, "descriptor": descriptor, "output": output, "maps": []}
        if output and (drawn := draw(_tables(results, samples, spec.name, output))):
            for kind, project in _projections(len(drawn.ids)).items():
                place, (across, up) = project(drawn.vectors)
                name = f"map{number}-{kind.lower()}"
                figures[name] = _map(drawn, place, across, up)
                model["maps"].append((kind, name))
            model |= {"drawn": drawn, "neighbours": _neighbours(drawn)}
        models.append(model)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["number"] = lambda value: f"{value:,}"
    text = environment.get_template("report.html").render(
        made=datetime.now(UTC).isoformat(" ", "minutes").removesuffix("+00:00"),
        samples=outcomes,
        receipts=receipts[:_JOBS],
        jobs=len(receipts),
        models=models,
        numerics=_numerics(receipts),
        versions={"esmflow": __version__} | {name: version(name) for name in ("snakemake", "plotly", "numpy")},
        config=json.dumps(config, indent=2, ensure_ascii=False),
        figures={name: _fragment(name, figure) for name, figure in figures.items()},
        plotly=get_plotlyjs(),
    )
    files.write_text(page, text)
    log.info("%s: %d samples, %d jobs, %d plots", page, len(outcomes), len(receipts), len(figures))


def read_statuses(directory: Path, samples: Sequence[str]) -> list[Sample]:
    """Count the records of each sample's status file."""
    result = []
    with database.connect(directory / "report") as connection:
        for sample in samples:
            rows = connection.execute(
                "SELECT status, reason, length, count(*) FROM read_csv($1, delim = '\t', header = true, quote = '\"', "
                "columns = {'id': 'VARCHAR', 'length': 'INTEGER', 'status': 'VARCHAR', 'reason': 'VARCHAR', "
                "'flags': 'VARCHAR'}) GROUP BY ALL ORDER BY ALL",
                [str(directory / f"{sample}.tsv")],
            ).fetchall()
            skipped: dict[str, int] = {}
            for status, reason, _, count in rows:
                if status == "skipped":
                    skipped[reason] = skipped.get(reason, 0) + count
            lengths = {length: count for status, _, length, count in rows if status == "embedded"}
            by_count = dict(sorted(skipped.items(), key=lambda item: -item[1]))
            result.append(Sample(sample, sum(lengths.values()), by_count, lengths))
    return result


def map_output(spec: ModelSpec, descriptor: Descriptor) -> Output | None:
    """The output that a model's map shows: the deepest layer's mean, or else another vector; None without vectors."""
    vectors = [output for output in spec.outputs(descriptor.architecture.layers) if not output.ragged]
    return max(vectors, key=lambda output: (output.representation == "mean", output.layer), default=None)


def _tables(results: Path, samples: Sequence[str], model: str, output: Output) -> dict[str, list[Path]]:
    """The files of each sample's feature table."""
    tables = {}
    for sample in samples:
        table = results / "features" / sample / model / f"{output.file_stem}.parquet"
        tables[sample] = [table] if table.exists() else sorted(table.with_suffix(".parts").glob("part-*.parquet"))
    return tables


def draw(tables: Mapping[str, Sequence[Path]], count: int = MAP_PROTEINS) -> Drawn | None:
    """Draw so many proteins at random from the tables of all samples; None if there are fewer than three."""
    parts = [(sample, path, pq.read_metadata(path).num_rows) for sample, paths in tables.items() for path in paths]
    records = sum(rows for _, _, rows in parts)
    if records < 3:
        return None
    chosen = np.sort(np.random.default_rng(0).choice(records, min(count, records), replace=False))
    samples: list[str] = []
    ids: list[str] = []
    lengths, vectors, begin = [], [], 0
    for sample, path, rows in parts:
        own = chosen[(chosen >= begin) & (chosen < begin + rows)] - begin
        begin += rows
        for table in _take(path, own):
            samples += [sample] * len(table)
            ids += table["id"].to_pylist()
            lengths.append(table["length"].to_numpy())
            flat = table["embedding"].combine_chunks().flatten().to_numpy()
            vectors.append(flat.reshape(len(table), -1))
    metadata = metadata_of(pq.read_schema(parts[0][1]))
    versions = {name.removeprefix("version."): value for name, value in metadata.items() if name.startswith("version.")}
    return Drawn(samples, ids, np.concatenate(lengths), np.concatenate(vectors), records, versions)


def _take(path: Path, rows: np.ndarray) -> Iterator[Any]:
    """The rows of a Parquet file, which ascend, as tables; of its row groups only those that have one are read."""
    begin = 0
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            own = rows[(rows >= begin) & (rows < begin + size)] - begin
            begin += size
            if own.size:
                yield file.read_row_group(group).take(own)


_Projected = tuple[np.ndarray, tuple[str, str]]


def _projections(proteins: int) -> dict[str, Callable[[np.ndarray], _Projected]]:
    """What brings vectors into the plane: PCA, and UMAP where umap-learn is installed and there is enough to map."""
    try:
        import umap
    except ImportError:
        return {"PCA": pca}

    def project(vectors: np.ndarray) -> _Projected:
        place = umap.UMAP(metric="cosine", random_state=0, n_jobs=1).fit_transform(vectors)
        return place, ("UMAP 1", "UMAP 2")

    return {"PCA": pca, "UMAP": project} if proteins > 2 * umap.UMAP().n_neighbors else {"PCA": pca}


def pca(vectors: np.ndarray) -> _Projected:
    """The first two principal components (Pearson 1901, doi:10.1080/14786440109462720), by singular values.

    vectors: float32 [n, embed_dim]. Returns float64 [n, 2] and a title for each axis with its share of the variance.
    The sign of a component is that which makes its largest loading positive.
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    variances, directions = np.linalg.eigh(centred.T @ centred)
    directions = directions[:, [-1, -2]]
    directions *= np.sign(directions[np.abs(directions).argmax(axis=0), [0, 1]])
    shares = variances[[-1, -2]] / max(variances.sum(), np.finfo(float).tiny)
    return centred @ directions, (f"PC 1 ({shares[0]:.1%} of the variance)", f"PC 2 ({shares[1]:.1%})")


def _neighbours(drawn: Drawn) -> list[dict[str, Any]]:
    """The proteins that point most nearly the same way as some of those drawn, by cosine."""
    unit = drawn.vectors / np.linalg.norm(drawn.vectors, axis=1, keepdims=True)
    result = []
    for query in np.linspace(0, len(unit) - 1, min(_QUERIES, len(unit)), dtype=int):
        cosines = unit @ unit[query]
        cosines[query] = -np.inf
        nearest = np.argsort(-cosines, kind="stable")[: min(_NEIGHBOURS, len(unit) - 1)]
        found = [{"cosine": float(cosines[row]), **_protein(drawn, row)} for row in nearest]
        result.append({**_protein(drawn, query), "nearest": found})
    return result


def _protein(drawn: Drawn, row: int) -> dict[str, Any]:
    return {"id": drawn.ids[row], "sample": drawn.samples[row], "length": int(drawn.lengths[row])}


def _map(drawn: Drawn, place: np.ndarray, across: str, up: str) -> go.Figure:
    """Points that can be coloured by sample or by length."""
    names = list(dict.fromkeys(drawn.samples))
    common = {
        "mode": "markers",
        "hovertemplate": "%{customdata[0]}<br>%{customdata[1]}: %{customdata[2]:,} residues<extra></extra>",
    }
    data = np.array(
        list(zip(map(_plain, drawn.ids), map(_plain, drawn.samples), drawn.lengths.tolist(), strict=True)), object
    )
    figure = go.Figure()
    groups = _groups(names)
    for title, members in groups:
        own = np.isin(drawn.samples, members)
        figure.add_scatter(
            x=place[own, 0], y=place[own, 1], customdata=data[own], name=title, marker={"size": 5}, **common
        )
    colour = {"size": 5, "color": np.log10(drawn.lengths), "colorscale": "Viridis", "showscale": True}
    ticks = [50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 35000]
    colour["colorbar"] = {
        "title": "residues",
        "tickvals": np.log10(ticks).tolist(),
        "ticktext": [f"{n:,}" for n in ticks],
    }
    figure.add_scatter(
        x=place[:, 0], y=place[:, 1], customdata=data, name="length", marker=colour, visible=False, **common
    )
    buttons = [
        {"label": label, "method": "update", "args": [{"visible": visible}, {"showlegend": label == "by sample"}]}
        for label, visible in (
            ("by sample", [True] * len(groups) + [False]),
            ("by length", [False] * len(groups) + [True]),
        )
    ]
    menu = {"buttons": buttons, "type": "buttons", "direction": "right", "x": 0, "xanchor": "left", "y": 1.12}
    return figure.update_layout(
        **_LAYOUT | {"height": 620, "margin": {"l": 70, "r": 30, "t": 70, "b": 60}},
        updatemenus=[menu],
        xaxis={"title": across},
        yaxis={"title": up, "scaleanchor": "x"} if across.startswith("PC") else {"title": up},
        showlegend=True,
    )


def _lengths(samples: Sequence[Sample]) -> go.Figure:
    """Embedded records by length, for each sample, in bins of equal width on a logarithmic scale."""
    found = {length for sample in samples for length in sample.lengths} or {1}
    edges = np.geomspace(min(found), max(found) + 1, 60)
    middles = np.sqrt(edges[:-1] * edges[1:])
    hover = [f"{np.ceil(a):,.0f} to {np.ceil(b) - 1:,.0f} residues" for a, b in pairwise(edges)]
    by_name = {sample.name: sample.lengths for sample in samples}
    figure = go.Figure()
    for title, members in _groups(list(by_name)):
        lengths = [length for name in members for length in by_name[name]]
        weights = [count for name in members for count in by_name[name].values()]
        counts, _ = np.histogram(lengths, edges, weights=weights)
        figure.add_bar(
            x=middles,
            y=counts,
            width=np.diff(edges),
            name=title,
            customdata=hover,
            hovertemplate="%{customdata}: %{y:,} records",
        )
    return figure.update_layout(
        **_LAYOUT,
        barmode="stack",
        bargap=0,
        xaxis={"title": "length in residues", "type": "log"},
        yaxis={"title": "records"},
        showlegend=True,
    )


def _seconds(receipts: Sequence[Mapping[str, Any]]) -> go.Figure:
    """How long each job took, and for what, in the order given."""
    jobs, own = [receipt["job"] for receipt in receipts], [receipt["figures"] for receipt in receipts]
    start = np.array([figures["startup_seconds"] for figures in own])
    computing = np.array([figures["computing_seconds"] / max(figures["processes"], 1) for figures in own])
    other = np.array([figures["seconds"] for figures in own]) - start - computing
    figure = go.Figure()
    for title, seconds in (("start", start), ("computing", computing), ("other", other.clip(min=0))):
        figure.add_bar(x=jobs, y=seconds, name=title, hovertemplate="%{x}: %{y:,.1f} s")
    return figure.update_layout(
        **_LAYOUT, barmode="stack", xaxis={"title": "job", "type": "category"}, yaxis={"title": "seconds"}
    )


def _balance(receipts: Sequence[Mapping[str, Any]]) -> go.Figure:
    """What each job had to compute, dearest first."""
    costs = {receipt["job"]: sum(use["flops"] for use in receipt["models"].values()) / 1e12 for receipt in receipts}
    ordered = sorted(costs.items(), key=lambda item: -item[1])
    figure = go.Figure()
    figure.add_bar(
        x=[name for name, _ in ordered], y=[cost for _, cost in ordered], hovertemplate="%{x}: %{y:,.2f} TFLOP"
    )
    return figure.update_layout(
        **_LAYOUT, xaxis={"title": "job", "type": "category"}, yaxis={"title": "computed, TFLOP"}
    )


def _numerics(receipts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each model and way of computing it: what the self-checks of its jobs found at worst."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for receipt in receipts:
        for name, use in receipt["models"].items():
            key = name, use["device"].partition(":")[0], use["precision"], use["attention"]
            row = found.setdefault(key, {"jobs": 0, "sequences": 0, "difference": 0.0, "cosine": 1.0})
            row["jobs"] += 1
            row["sequences"] += use["self_check"]["sequences"]
            row["difference"] = max(row["difference"], use["self_check"]["largest_difference"])
            row["cosine"] = min(row["cosine"], use["self_check"]["least_cosine"])
    names = ("model", "device", "precision", "attention")
    return [dict(zip(names, key, strict=True)) | row for key, row in sorted(found.items())]


def _groups(samples: list[str]) -> list[tuple[str, list[str]]]:
    """Samples with a colour of their own, then all others together: (name as Plotly shows it, samples)."""
    groups = [(_plain(name), [name]) for name in samples[:_COLOURS]]
    others = samples[_COLOURS:]
    return [*groups, (f"{len(others)} more samples", others)] if others else groups


def _plain(text: str) -> str:
    """Text that Plotly, which takes some HTML, shows as it is."""
    return escape(text, quote=False)


def _fragment(name: str, figure: go.Figure) -> str:
    options = {"displaylogo": False, "responsive": True}
    html = plotly.io.to_html(figure, full_html=False, include_plotlyjs=False, div_id=name, config=options)
    return str(html)
