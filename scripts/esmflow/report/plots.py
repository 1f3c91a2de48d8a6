"""The report's plots, and what they are as HTML."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go
import plotly.io

from esmflow.alphabet import AMINO_ACIDS
from esmflow.receipt import Receipt
from esmflow.report.likelihoods import Perplexities, ProteinMarginals
from esmflow.report.maps import Drawn

#: Samples with a colour of their own.
_COLOURS = 10
_LAYOUT = {"template": "plotly_white", "height": 420, "margin": {"l": 70, "r": 30, "t": 30, "b": 60}}


def protein_map(drawn: Drawn, place: np.ndarray, across: str, up: str) -> go.Figure:
    """Points that can be coloured by sample or by length. place: float [proteins, 2]; across, up: axis titles."""
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
        shown = np.isin(drawn.samples, members)
        figure.add_scatter(
            x=place[shown, 0], y=place[shown, 1], customdata=data[shown], name=title, marker={"size": 5}, **common
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


def lengths_plot(samples: Mapping[str, Mapping[int, int]]) -> go.Figure:
    """Records by length, in bins of equal width on a logarithmic scale. samples: how many have each length."""
    occurring = {length for lengths in samples.values() for length in lengths} or {1}
    edges = np.geomspace(min(occurring), max(occurring) + 1, 60)
    hover = [f"{np.ceil(a):,.0f} to {np.ceil(b) - 1:,.0f} residues" for a, b in pairwise(edges)]

    def counts(members: list[str]) -> np.ndarray:
        lengths = [length for name in members for length in samples[name]]
        weights = [count for name in members for count in samples[name].values()]
        return np.histogram(lengths, edges, weights=weights)[0]

    return _histogram(list(samples), counts, edges, hover, "length in residues")


def perplexity_plot(perplexities: Perplexities) -> go.Figure:
    """Records by perplexity, in bins of equal width on a logarithmic scale."""
    every = np.concatenate([np.empty(0), *perplexities.samples.values()])
    least, most = (every.min(), every.max()) if len(every) else (1.0, 20.0)
    edges = np.geomspace(least, max(most, least * 1.001), 50)
    hover = [f"perplexity {a:.2f} to {b:.2f}" for a, b in pairwise(edges)]
    title = "perplexity, each residue masked in turn" if perplexities.masked else "perplexity, nothing masked"

    def counts(members: list[str]) -> np.ndarray:
        values = np.concatenate([perplexities.samples[name] for name in members])
        return np.histogram(values.clip(edges[0], edges[-1]), edges)[0]

    return _histogram(list(perplexities.samples), counts, edges, hover, title)


def _histogram(
    samples: list[str],
    counts: Callable[[list[str]], np.ndarray],
    edges: np.ndarray,
    hover: Sequence[str],
    title: str,
) -> go.Figure:
    """Records in bins on a logarithmic scale, of each group of samples upon the other. counts: of a group's samples."""
    figure = go.Figure()
    for name, members in _groups(samples):
        figure.add_bar(
            x=np.sqrt(edges[:-1] * edges[1:]),
            y=counts(members),
            width=np.diff(edges),
            name=name,
            customdata=hover,
            hovertemplate="%{customdata}: %{y:,} records",
        )
    return figure.update_layout(
        **_LAYOUT,
        barmode="stack",
        bargap=0,
        xaxis={"title": title, "type": "log"},
        yaxis={"title": "records"},
        showlegend=True,
    )


def marginals_plot(protein: ProteinMarginals) -> go.Figure:
    """A heat map: residues across, the 20 amino acids up; the residue that is there has 0."""
    bound = float(np.abs(protein.marginals).max()) or 1.0
    figure = go.Figure()
    figure.add_heatmap(
        z=protein.marginals.T,
        x=np.arange(1, len(protein.marginals) + 1),
        y=list(AMINO_ACIDS),
        zmin=-bound,
        zmax=bound,
        colorscale="RdBu",
        colorbar={"title": "log p - log p<br>of what is there"},
        hovertemplate="position %{x}, %{y}: %{z:.2f}<extra></extra>",
    )
    return figure.update_layout(
        **_LAYOUT | {"height": 480}, xaxis={"title": "position"}, yaxis={"title": "amino acid", "autorange": "reversed"}
    )


def seconds_plot(receipts: Sequence[Receipt]) -> go.Figure:
    """How long each job took, and for what, in the order given."""
    jobs, figures = [receipt.job for receipt in receipts], [receipt.figures for receipt in receipts]
    start = np.array([job.startup_seconds for job in figures])
    computing = np.array([job.computing_seconds / max(job.processes, 1) for job in figures])
    other = np.array([job.seconds for job in figures]) - start - computing
    figure = go.Figure()
    for title, seconds in (("start", start), ("computing", computing), ("other", other.clip(min=0))):
        figure.add_bar(x=jobs, y=seconds, name=title, hovertemplate="%{x}: %{y:,.1f} s")
    return figure.update_layout(
        **_LAYOUT, barmode="stack", xaxis={"title": "job", "type": "category"}, yaxis={"title": "seconds"}
    )


def balance_plot(receipts: Sequence[Receipt]) -> go.Figure:
    """What each job had to compute, dearest first."""
    costs = {receipt.job: sum(use.flops for use in receipt.models.values()) / 1e12 for receipt in receipts}
    ordered = sorted(costs.items(), key=lambda item: -item[1])
    figure = go.Figure()
    figure.add_bar(
        x=[name for name, _ in ordered], y=[cost for _, cost in ordered], hovertemplate="%{x}: %{y:,.2f} TFLOP"
    )
    return figure.update_layout(
        **_LAYOUT, xaxis={"title": "job", "type": "category"}, yaxis={"title": "computed, TFLOP"}
    )


def _groups(samples: list[str]) -> list[tuple[str, list[str]]]:
    """Samples with a colour of their own, then all others together: (name as Plotly shows it, samples)."""
    groups = [(_plain(name), [name]) for name in samples[:_COLOURS]]
    others = samples[_COLOURS:]
    return [*groups, (f"{len(others)} more samples", others)] if others else groups


def _plain(text: str) -> str:
    """Text that Plotly, which takes some HTML, shows as it is."""
    return escape(text, quote=False)


def fragment(name: str, figure: go.Figure) -> str:
    """A plot as HTML, an element of that name; Plotly's code is not in it."""
    options = {"displaylogo": False, "responsive": True}
    html = plotly.io.to_html(figure, full_html=False, include_plotlyjs=False, div_id=name, config=options)
    return str(html)
