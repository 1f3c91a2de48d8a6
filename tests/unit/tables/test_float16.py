"""Vectors in float16: rounded as the standard library rounds, half as large, read by all that read float32."""

import struct
from dataclasses import replace
from itertools import islice, product
from pathlib import Path

import anndata
import duckdb
import h5py
import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from esmflow.architecture import Architecture
from esmflow.inputs.catalog import ingest
from esmflow.inputs.fasta import key_of
from esmflow.inputs.samples import Fasta
from esmflow.plan.plan import plan
from esmflow.plan.sizes import Sizes
from esmflow.planned_model import Descriptor, ModelSpec, PlannedModel
from esmflow.report import maps
from esmflow.representation import Output
from esmflow.results import Results, read_outcomes
from esmflow.run_plan import RunPlan
from esmflow.store import keeping
from esmflow.store.store import Store, commit
from esmflow.tables.exports import EXPORTS
from esmflow.tables.features import write_table
from esmflow.tables.ordered import embedded
from esmflow.tables.residues import write_residues
from esmflow.tables.status import write_status
from esmflow.treatment import WHOLE

EMBED_DIM, PROTEINS = 320, 300
SHAPE = Architecture(
    "ESM-2", 6, EMBED_DIM, 4, 32, token_dropout=True, max_residues=None, lm_head=True, contact_head=True
)
SPEC = ModelSpec("m", (6,), ("mean", "per_tok", "entropy"), "skip", 1022, 0, "fp32")
DESCRIPTOR = Descriptor("m", [], [], "ab" * 32, SHAPE)
MODELS = {vectors: PlannedModel(replace(SPEC, vectors=vectors), DESCRIPTOR) for vectors in ("float32", "float16")}
ENTROPY, MEAN, RESIDUES = MODELS["float16"].outputs


def rounded(values: np.ndarray) -> np.ndarray:
    """The nearest half-precision numbers, by Python's `struct`."""
    numbers = values.ravel().tolist()
    content = struct.pack(f"<{len(numbers)}e", *numbers)
    return np.array(struct.unpack(f"<{len(numbers)}e", content)).reshape(values.shape)


class Sample:
    """Proteins whose values, of all magnitudes that float16 has, lie in a store in float32 and in float16."""

    def __init__(self, root: Path) -> None:
        self.root, self.store = root, Store(root / "store")
        self.catalog, self.sequences = root / "catalog.parquet", root / "sequences.parquet"
        self.proteins = ["".join(letters) for letters in islice(product("ACDEFGHI", repeat=3), PROTEINS)]
        (root / "a.fa").write_text("".join(f">p{n}\n{residues}\n" for n, residues in enumerate(self.proteins)))
        ingest("a", [Fasta(root / "a.fa")], self.catalog, self.sequences, fail_on_invalid=True)
        draw = np.random.default_rng(1)
        shapes = {MEAN: (EMBED_DIM,), RESIDUES: (3, EMBED_DIM), ENTROPY: (3,)}
        self.values = {
            output: (draw.choice([-1, 1], (PROTEINS, *shape)) * 10 ** draw.uniform(-9, 4.8, (PROTEINS, *shape))).astype(
                np.float32
            )
            for output, shape in shapes.items()
        }
        for vectors in MODELS:
            for output in self.values:
                self.put(str(output), vectors, output)

    def put(self, shard: str, vectors: str, output: Output) -> Path:
        """Commit an output's values as a worker does."""
        keys = pa.array([key_of(protein)[0] for protein in self.proteins], pa.binary(32))
        path = self.store.path(MODELS[vectors].space(WHOLE), shard)
        values = self.values[output] if output == MEAN else list(self.values[output])
        metadata = {"model": "m", "precision": "fp32"}
        commit(path, keys, [None] * len(keys), {output: values}, metadata, vectors)
        return path

    def table(self, vectors: str) -> Path:
        write_table(self.catalog, MODELS[vectors], MEAN, self.store, self.root / f"{vectors}.parquet")
        return self.root / f"{vectors}.parquet"

    def export(self, name: str, output: Output, *names: str) -> list[Path]:
        model = MODELS["float16"].asked_for([output.representation])
        paths = [self.root / name / target for target in names]
        with embedded(self.catalog, model, self.store, paths[0], self.sequences) as records:
            EXPORTS[name].write(records, *paths)
        return paths


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return Sample(tmp_path_factory.mktemp("float16"))


def test_a_table_in_float16_is_the_float32_one_rounded(sample: Sample) -> None:
    exact, half = (pq.read_table(sample.table(vectors)) for vectors in ("float32", "float16"))
    assert half.schema.field("embedding").type.value_type == pa.float16()
    assert half["id"].to_pylist() == exact["id"].to_pylist()
    values = np.array(exact["embedding"].to_pylist(), np.float32)
    assert np.array_equal(values, sample.values[MEAN])
    assert np.array_equal(np.array(half["embedding"].to_pylist()), rounded(values))


def test_store_and_table_take_half_the_disk(sample: Sample) -> None:
    sizes = {}
    for vectors in MODELS:
        path = sample.put(str(MEAN), vectors, MEAN)
        sizes[vectors] = path.stat().st_size, sample.table(vectors).stat().st_size
    for exact, half in zip(sizes["float32"], sizes["float16"], strict=True):
        assert half <= 0.52 * exact


def test_pandas_polars_and_duckdb_read_a_table_in_float16(sample: Sample) -> None:
    path, expected = sample.table("float16"), rounded(sample.values[MEAN])
    assert np.array_equal(np.stack(pd.read_parquet(path)["embedding"]), expected)
    assert np.array_equal(polars.read_parquet(path)["embedding"].to_numpy(), expected)
    [(column,)] = duckdb.sql(f"SELECT list(embedding::FLOAT[{EMBED_DIM}] ORDER BY length, id) FROM '{path}'").fetchall()
    order = sorted(range(PROTEINS), key=lambda number: f"p{number}")
    assert np.array_equal(np.array(column), expected[order])


def test_a_residue_file_in_float16_is_rounded_and_entropies_are_not(sample: Sample) -> None:
    for output in (RESIDUES, ENTROPY):
        write_residues(sample.catalog, MODELS["float16"], output, sample.store, sample.root / f"{output}.h5")
    with h5py.File(sample.root / f"{RESIDUES}.h5") as file:
        assert file["embeddings"].dtype == np.float16
        found = file["embeddings"][:].reshape(-1, 3, EMBED_DIM)[file["sequence"][:]]
        assert np.array_equal(found, rounded(sample.values[RESIDUES]))
    with h5py.File(sample.root / f"{ENTROPY}.h5") as file:
        assert np.array_equal(file["entropy"][:].reshape(-1, 3)[file["sequence"][:]], sample.values[ENTROPY])


def test_each_export_holds_float16_or_the_same_numbers_in_float32(sample: Sample) -> None:
    expected = rounded(sample.values[MEAN])
    [table] = sample.export("csv", MEAN, "t.csv.gz")
    assert np.array_equal(pd.read_csv(table).iloc[:, 2:].to_numpy(np.float32), expected)
    array, _ = sample.export("npy", MEAN, "t.npy", "t.txt")
    assert np.load(array, mmap_mode="r").dtype == np.float16
    assert np.array_equal(np.load(array), expected)
    [h5ad] = sample.export("anndata", MEAN, "t.h5ad")
    assert np.array_equal(anndata.read_h5ad(h5ad).X, expected)
    [directory] = sample.export("fair_esm_pt", MEAN, "t")
    saved = torch.load(directory / "p7.pt", weights_only=True)["mean_representations"][6]
    assert saved.dtype == torch.float16
    assert np.array_equal(saved.numpy(), expected[7])
    [per_protein] = sample.export("uniprot_h5", MEAN, "per-protein.h5")
    with h5py.File(per_protein) as file:
        assert file["p7"].dtype == np.float16
        assert np.array_equal(file["p7"], expected[7])
    [per_residue] = sample.export("uniprot_h5", RESIDUES, "per-residue.h5")
    with h5py.File(per_residue) as file:
        assert np.array_equal(file["p7"], rounded(sample.values[RESIDUES])[7])
    by_md5, mapping = sample.export("bio_embeddings", MEAN, "t.h5", "t.csv")
    with h5py.File(by_md5) as file:
        found = np.stack([file[md5][:] for md5 in pd.read_csv(mapping, index_col=0).index])
    assert np.array_equal(found, expected)


def test_the_map_of_a_report_is_drawn_in_float32(sample: Sample) -> None:
    drawn = maps.draw({"a": [sample.table("float16")]})
    assert drawn is not None
    assert drawn.vectors.dtype == np.float32
    assert np.array_equal(drawn.vectors, rounded(sample.values[MEAN]))


def test_a_value_that_would_round_to_infinity_is_told_and_nothing_is_stored_of_it(tmp_path: Path) -> None:
    largest, beyond = 65519.99, -65520.0
    (tmp_path / "a.fa").write_text(">fits\nMKV\n>does_not\nMKVA\n")
    ingest("a", [Fasta(tmp_path / "a.fa")], tmp_path / "catalog", tmp_path / "sequences", fail_on_invalid=True)
    store, model = Store(tmp_path / "store"), MODELS["float16"].asked_for(["mean", "per_tok"])
    keys = pa.array([key_of(protein)[0] for protein in ("MKV", "MKVA")], pa.binary(32))
    residues = [np.full((length, EMBED_DIM), 1.0, np.float32) for length in (3, 4)]
    residues[0][1, 5], residues[1][1, 5] = largest, beyond
    values = {MEAN: np.ones((2, EMBED_DIM), np.float32), RESIDUES: residues}
    commit(store.path(model.space(WHOLE), "s"), keys, [None, None], values, {"model": "m"}, "float16")
    keeping.verify(store.root)
    write_status(tmp_path / "catalog", [model], store, tmp_path / "status.tsv", {})
    outcomes = read_outcomes(tmp_path / "status.tsv")
    assert outcomes == {
        ("embedded", "", 3): 1,
        ("skipped", f"{RESIDUES} is beyond the range of float16", 4): 1,
    }
    write_table(tmp_path / "catalog", model, MEAN, store, tmp_path / "table.parquet")
    assert pq.read_table(tmp_path / "table.parquet")["id"].to_pylist() == ["fits"]


def test_a_plan_reckons_with_the_bytes_that_are_written_and_takes_nothing_of_the_other_part(tmp_path: Path) -> None:
    proteins, results, store = ["MKV", "MKVA"], Results(tmp_path / "results"), Store(tmp_path / "store")
    (tmp_path / "a.fa").write_text("".join(f">{protein}\n{protein}\n" for protein in proteins))
    ingest("a", [Fasta(tmp_path / "a.fa")], results.catalog("a"), results.sequences("a"), fail_on_invalid=True)
    keys = pa.array([key_of(protein)[0] for protein in proteins], pa.binary(32))
    values = {MEAN: np.ones((2, EMBED_DIM), np.float32)}
    values |= {RESIDUES: [np.ones((n, EMBED_DIM), np.float32) for n in (3, 4)]}
    values |= {ENTROPY: [np.ones(n, np.float32) for n in (3, 4)]}
    sizes = Sizes(target_minutes=5, max_jobs=1, gpus_per_job=0, threads=1, tokens_per_pack=None)
    for vectors, of_vectors in (("float32", 4), ("float16", 2)):
        plan([MODELS[vectors]], ["a"], results, store, sizes)
        preflight = RunPlan.load(results.plan).preflight
        assert preflight.store_bytes == preflight.table_bytes == of_vectors * (2 + 7) * EMBED_DIM + 4 * 7
        commit(store.path(MODELS[vectors].space(WHOLE), "s"), keys, [None, None], values, {"model": "m"}, vectors)
        plan([MODELS[vectors]], ["a"], results, store, sizes)
        assert RunPlan.load(results.plan).preflight.jobs == 0


def test_each_has_its_part_of_the_store_which_the_store_s_commands_tell_apart(sample: Sample) -> None:
    entries = list(keeping.entries(sample.store.root))
    assert {(entry.precision, entry.vectors, str(entry.treatment)) for entry in entries} == {
        ("fp32", "float32", "whole"),
        ("fp32", "float16", "whole"),
    }
    key, length = key_of(sample.proteins[7])
    found = {
        entry.vectors: keeping.values(entry, row, MEAN, length)
        for entry, row, _ in keeping.find(sample.store.root, key, output=MEAN)
    }
    assert np.array_equal(found["float32"], sample.values[MEAN][7])
    assert np.array_equal(found["float16"], rounded(sample.values[MEAN][7]))
