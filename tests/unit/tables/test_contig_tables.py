"""Tables of contigs, against pandas: whatever batches the vectors come in, and wherever contigs have none."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from esmflow.origin import ANOTHER_CONTIG
from esmflow.sealed import seal
from esmflow.tables import contigs

EMBED_DIM = 5


@dataclass
class Records:
    """Vectors of records in batches of any size, as `OrderedRecords` gives them."""

    index: np.ndarray
    vectors: np.ndarray
    sizes: list[int]
    embed_dim: int = EMBED_DIM
    metadata: dict[str, dict[str, str]] = field(default_factory=lambda: {"layer1.mean": {"esmflow.model": "tiny"}})

    def dtype(self, output: str) -> np.dtype:
        return self.vectors.dtype

    def batches(self, *columns: str) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
        assert columns == ("index",)
        end = 0
        while end < len(self.index):
            begin, end = end, end + self.sizes.pop()
            yield pa.record_batch({"index": self.index[begin:end]}), self.vectors[begin:end]


def made_up(draw: random.Random, contig_count: int) -> pd.DataFrame:
    """A catalog of runs of records, each of one contig, which has a number of its own; None stands for proteins."""
    rows = []
    before = None
    for number in range(contig_count):
        contig = draw.choice(["a", "b", "c", "d", None])
        for place in range(draw.choice([1, 1, 2, 7])):
            begins_another = place == 0 and contig is not None and contig == before
            rows.append((contig, number, draw.choice(["", "x,"]) + ANOTHER_CONTIG if begins_another else "lowercase"))
        before = contig
    return pd.DataFrame(rows, columns=["contig", "number", "flags"]).rename_axis("index").reset_index()


@pytest.mark.parametrize("seed", range(20))
def test_a_contig_s_vectors_are_pooled_as_pandas_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    draw = random.Random(seed)
    catalog = made_up(draw, contig_count=draw.choice([1, 60]))
    monkeypatch.setattr(contigs, "_ROWS", draw.choice([1, 7, 1000]))
    monkeypatch.setattr(contigs, "_GROUP_BYTES", draw.choice([1, 200, 1 << 20]))
    pq.write_table(pa.Table.from_pandas(catalog[["index", "contig", "flags"]]), tmp_path / "catalog.parquet")
    seal(tmp_path / "catalog.parquet")
    embedded = catalog[[draw.random() < 0.7 for _ in range(len(catalog))]]
    vectors = np.random.default_rng(seed).normal(size=(len(embedded), EMBED_DIM)).astype(np.float32)
    records = Records(embedded["index"].to_numpy(), vectors, [draw.choice([1, 3, 50]) for _ in catalog.index])
    contigs.write_contigs(records, tmp_path / "catalog.parquet", ["max", "mean"], tmp_path / "t.parquet")  # type: ignore[arg-type]

    table = pq.read_table(tmp_path / "t.parquet")
    assert table.schema.names == ["contig", "fragments", "max", "mean"]
    assert table.schema.metadata == {b"esmflow.model": b"tiny"}
    of_contigs = catalog[catalog["contig"].notna()]
    numbers = of_contigs["number"].drop_duplicates()
    groups = pd.DataFrame(vectors, dtype=float).groupby(embedded["number"].to_numpy())
    assert table["contig"].to_pylist() == of_contigs["contig"][numbers.index].to_list()
    counts = groups.size().reindex(numbers, fill_value=0)
    assert table["fragments"].to_pylist() == counts.to_list()
    for pooling in ("max", "mean"):
        expected = groups.agg(pooling).reindex(numbers).to_numpy()
        rows = table[pooling].to_pylist()
        assert [row is None for row in rows] == (counts == 0).to_list()
        found = np.array([row or [np.nan] * EMBED_DIM for row in rows]).reshape(-1, EMBED_DIM)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_only_what_is_asked_for_is_there(tmp_path: Path) -> None:
    pq.write_table(pa.table({"index": [0], "contig": ["a"], "flags": [""]}), tmp_path / "catalog.parquet")
    seal(tmp_path / "catalog.parquet")
    records = Records(np.array([0]), np.ones((1, EMBED_DIM), np.float32), [1])
    contigs.write_contigs(records, tmp_path / "catalog.parquet", ["mean"], tmp_path / "t.parquet")  # type: ignore[arg-type]
    assert pq.read_table(tmp_path / "t.parquet").to_pylist() == [
        {"contig": "a", "fragments": 1, "mean": [1.0] * EMBED_DIM}
    ]
