"""Maps of proteins: some drawn from the feature tables, brought into the plane, and who lies nearest to whom."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from esmflow.planned_model import PlannedModel
from esmflow.representation import VECTORS, Output
from esmflow.results import reading_output
from esmflow.store.store import metadata_of

#: Proteins in a map, drawn at random if there are more: as many as a browser moves with ease.
MAP_PROTEINS = 5000
_UMAP_NEIGHBOURS = 15
#: Proteins whose neighbours are listed, and neighbours of each.
_QUERIES, _NEIGHBOURS = 8, 5


def map_output(model: PlannedModel) -> Output | None:
    """The output that a model's map shows: the deepest layer's mean, or else another vector; None without vectors."""
    vectors = [output for output in model.outputs if output.representation in VECTORS]
    return max(vectors, key=lambda output: (output.representation == "mean", output.layer), default=None)


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


def draw(tables: Mapping[str, Sequence[Path]], count: int = MAP_PROTEINS) -> Drawn | None:
    """Draw so many proteins at random from the tables of all samples; None if there are fewer than three."""
    parts = [(sample, path, _rows(path)) for sample, paths in tables.items() for path in paths]
    records = sum(rows for _, _, rows in parts)
    if records < 3:
        return None
    chosen = np.sort(np.random.default_rng(0).choice(records, min(count, records), replace=False))
    samples: list[str] = []
    ids: list[str] = []
    lengths, vectors, begin = [], [], 0
    for sample, path, rows in parts:
        drawn = chosen[(chosen >= begin) & (chosen < begin + rows)] - begin
        begin += rows
        for table in _take(path, drawn):
            samples += [sample] * len(table)
            ids += table["id"].to_pylist()
            lengths.append(table["length"].to_numpy())
            flat = table["embedding"].combine_chunks().flatten().to_numpy()
            vectors.append(flat.reshape(len(table), -1).astype(np.float32))
    metadata = metadata_of(pq.read_schema(parts[0][1]))
    versions = {name.removeprefix("version."): value for name, value in metadata.items() if name.startswith("version.")}
    return Drawn(samples, ids, np.concatenate(lengths), np.concatenate(vectors), records, versions)


def _rows(path: Path) -> int:
    with reading_output(path):
        return int(pq.read_metadata(path).num_rows)


def _take(path: Path, rows: np.ndarray) -> Iterator[pa.Table]:
    """The rows of a Parquet file, which ascend, as tables; of its row groups only those that have one are read."""
    begin = 0
    with reading_output(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            chosen = rows[(rows >= begin) & (rows < begin + size)] - begin
            begin += size
            if chosen.size:
                yield file.read_row_group(group).select(["id", "length", "embedding"]).take(chosen)


_Projected = tuple[np.ndarray, tuple[str, str]]


def projections(proteins: int) -> dict[str, Callable[[np.ndarray], _Projected]]:
    """What brings vectors into the plane: PCA, and UMAP where umap-learn is installed and there is enough to map."""
    # It takes ten seconds to import.
    if proteins <= 2 * _UMAP_NEIGHBOURS:
        return {"PCA": pca}
    try:
        import umap
    except ImportError:
        return {"PCA": pca}

    def project(vectors: np.ndarray) -> _Projected:
        mapper = umap.UMAP(metric="cosine", n_neighbors=_UMAP_NEIGHBOURS, random_state=0, n_jobs=1)
        return mapper.fit_transform(vectors), ("UMAP 1", "UMAP 2")

    return {"PCA": pca, "UMAP": project}


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


@dataclass(frozen=True)
class Protein:
    """One of those drawn."""

    id: str
    sample: str
    length: int


@dataclass(frozen=True)
class Neighbour:
    """A protein that points nearly the same way as another."""

    protein: Protein
    cosine: float


@dataclass(frozen=True)
class Neighbourhood:
    """A protein and those nearest to it, the nearest first."""

    protein: Protein
    nearest: list[Neighbour]


def neighbours(drawn: Drawn) -> list[Neighbourhood]:
    """The proteins that point most nearly the same way as some of those drawn, by cosine."""
    unit = drawn.vectors / np.linalg.norm(drawn.vectors, axis=1, keepdims=True)
    result = []
    for query in np.linspace(0, len(unit) - 1, min(_QUERIES, len(unit)), dtype=int):
        cosines = unit @ unit[query]
        cosines[query] = -np.inf
        nearest = np.argsort(-cosines, kind="stable")[: min(_NEIGHBOURS, len(unit) - 1)]
        near = [Neighbour(_protein(drawn, row), float(cosines[row])) for row in nearest]
        result.append(Neighbourhood(_protein(drawn, query), near))
    return result


def _protein(drawn: Drawn, row: int) -> Protein:
    return Protein(drawn.ids[row], drawn.samples[row], int(drawn.lengths[row]))
