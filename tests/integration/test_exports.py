"""Exports, each opened by the library that its users use, equal to the feature tables and to what fair-esm writes."""

import hashlib
import re
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import reference
import torch
from random_residues import residues
from workflow import ROOT, Entry, Workspace, matrix, plain

MODEL, LAYERS, EMBED_DIM, MAX_LENGTH = "tiny", 3, 48, 90
FORMATS = ["csv", "npy", "uniprot_h5", "fair_esm_pt", "bio_embeddings", "anndata"]
OUTPUT = f"layer{LAYERS}.mean"
EXTRACT = ROOT / "benchmarks" / "extract_like_fair_esm.py"
FILES = [
    f"csv/{OUTPUT}.csv.gz",
    f"npy/{OUTPUT}.npy",
    f"uniprot_h5/{OUTPUT}/per-protein.h5",
    f"uniprot_h5/layer{LAYERS}.per_tok/per-residue.h5",
    "fair_esm_pt",
    f"bio_embeddings/{OUTPUT}/reduced_embeddings_file.h5",
    f"anndata/{OUTPUT}.h5ad",
]


@dataclass(frozen=True)
class Exported:
    """A run in which a sample was exported in all formats."""

    work: Workspace
    entries: list[Entry]

    @property
    def embedded(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.residues]

    @property
    def vectors(self) -> np.ndarray:
        return matrix(self.work.table("s", MODEL, OUTPUT))

    def path(self, name: str) -> Path:
        return self.work.root / "results/exports/s" / MODEL / name


@pytest.fixture(scope="module")
def exported(once: Callable[[str, Callable[[Path], None]], Path]) -> Exported:
    proteins = [residues(length, length) for length in (40, 89, 90, 91, 120, 7, 60, 30)]
    entries = [
        Entry("gap", "MK-V", reason="gap"),
        plain("sp|P12345|NAME_HUMAN Protein with a long name OS=Homo sapiens", proteins[0]),
        plain("tr|A0A000|NAME_MOUSE (strain A / B) 50% of it", proteins[1]),
        plain("../../../escape", proteins[2]),
        plain("contig_1 # 2 # 181 # 1 # ID=1_1;partial=10", proteins[3]),
        plain("twice", proteins[4]),
        plain('quote",and=comma "said"', proteins[5]),
        plain("twice", proteins[6]),
        plain("another_name_for_it", proteins[4]),
        plain("ü_ß Größe", proteins[7]),
        plain("..", "MKV"),
        plain("x" * 300 + " " + "y" * 300, "MKVA"),
    ]
    model = {
        "weights": "esm2_tiny.pt",
        "layers": [1, -1],
        "representations": ["mean", "bos", "per_tok", "contacts"],
        "long_sequences": "truncate",
        "max_length": MAX_LENGTH,
    }
    tables = [f"results/features/s/{MODEL}/{OUTPUT}.parquet", f"results/residues/s/{MODEL}/layer{LAYERS}.per_tok.h5"]

    def run_to(directory: Path) -> None:
        work = Workspace(directory)
        write_fair_esm_weights(directory)
        work.write_samples([("s", work.write_fasta("s.fasta", entries))])
        work.write_config({MODEL: model}, exports=FORMATS)
        work.run("--", *tables, *(f"results/exports/s/{MODEL}/{name}" for name in FILES))

    return Exported(Workspace(once("exports", run_to)), entries)


def write_fair_esm_weights(directory: Path) -> None:
    """Random weights as fair-esm's loader wants them: those for contacts in a file of their own."""
    model = reference.tiny_esm2(directory / "esm2_tiny.pt")
    head = {f"contact_head.{name}": tensor for name, tensor in model.contact_head.state_dict().items()}
    torch.save({"model": head}, directory / "esm2_tiny-contact-regression.pt")


def test_csv(exported: Exported) -> None:
    table = pd.read_csv(exported.path(f"csv/{OUTPUT}.csv.gz"))
    assert list(table.columns) == ["id", "length", *(f"e{number}" for number in range(EMBED_DIM))]
    assert table["id"].to_list() == [entry.id for entry in exported.embedded]
    assert table["length"].to_list() == [len(entry.residues) for entry in exported.embedded]
    assert np.array_equal(table.iloc[:, 2:].to_numpy(np.float32), exported.vectors)


def test_npy(exported: Exported) -> None:
    vectors = np.load(exported.path(f"npy/{OUTPUT}.npy"), mmap_mode="r")
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, exported.vectors)
    ids = exported.path(f"npy/{OUTPUT}.ids.txt").read_text(encoding="utf-8")
    assert ids.splitlines() == [entry.id for entry in exported.embedded]


def uniprot_keys(entries: list[Entry]) -> list[str]:
    """The datasets that UniProt's layout has for the entries, by hand."""
    by_id = {"sp|P12345|NAME_HUMAN": "P12345", "tr|A0A000|NAME_MOUSE": "A0A000", "..": "%2E%2E"}
    keys = [by_id.get(entry.id, entry.id).replace("/", "%2F") for entry in entries]
    keys[6] = "twice%-2"
    keys[10] = "x" * 200 + "%+" + hashlib.sha256(b"x" * 300).hexdigest()[:16]
    return keys


def test_uniprot_per_protein(exported: Exported) -> None:
    with h5py.File(exported.path(f"uniprot_h5/{OUTPUT}/per-protein.h5")) as file:
        assert file.attrs["model_name"] == MODEL
        keys = uniprot_keys(exported.embedded)
        assert sorted(file) == sorted(keys)
        assert [file[key].attrs["original_id"] for key in keys] == [entry.id for entry in exported.embedded]
        assert np.array_equal(np.stack([file[key] for key in keys]), exported.vectors)


def test_uniprot_per_residue(exported: Exported) -> None:
    residues = exported.work.root / "results/residues/s" / MODEL / f"layer{LAYERS}.per_tok.h5"
    with (
        h5py.File(exported.path(f"uniprot_h5/layer{LAYERS}.per_tok/per-residue.h5")) as file,
        h5py.File(residues) as expected,
    ):
        keys = uniprot_keys(exported.embedded)
        assert sorted(file) == sorted(keys)
        assert file.attrs["model_name"] == MODEL
        for key, number, entry in zip(keys, expected["sequence"], exported.embedded, strict=True):
            begin, end = expected["offsets"][number : number + 2]
            assert end - begin == min(len(entry.residues), MAX_LENGTH)
            assert np.array_equal(file[key], expected["embeddings"][begin:end])


def test_bio_embeddings(exported: Exported) -> None:
    directory = exported.path(f"bio_embeddings/{OUTPUT}")
    mapping = pd.read_csv(directory / "mapping_file.csv", index_col=0)
    md5 = [hashlib.md5(entry.residues.encode()).hexdigest() for entry in exported.embedded]
    assert mapping.index.to_list() == md5
    assert mapping["original_id"].to_list() == [entry.id for entry in exported.embedded]
    assert mapping["sequence_length"].to_list() == [len(entry.residues) for entry in exported.embedded]
    with h5py.File(directory / "reduced_embeddings_file.h5") as file:
        assert set(file) == set(md5)
        for key, entry, vector in zip(md5, exported.embedded, exported.vectors, strict=True):
            assert np.array_equal(file[key], vector)
            assert file[key].attrs["original_id"] == (entry.id if entry.id != "another_name_for_it" else "twice")


def test_anndata(exported: Exported) -> None:
    data = anndata.read_h5ad(exported.path(f"anndata/{OUTPUT}.h5ad"))
    assert np.array_equal(data.X, exported.vectors)
    assert data.X.dtype == np.float32
    ids = [entry.id for entry in exported.embedded]
    assert data.obs["id"].to_list() == ids
    assert data.obs_names.to_list() == [*ids[:6], "twice%-2", *ids[7:]]
    assert data.obs_names.is_unique
    assert data.obs["description"].to_list() == [entry.header[len(entry.id) + 1 :] for entry in exported.embedded]
    assert data.obs["length"].to_list() == [len(entry.residues) for entry in exported.embedded]
    assert data.n_vars == EMBED_DIM
    assert data.uns["esmflow"]["layer"] == str(LAYERS)
    assert (
        data.uns["esmflow"]["weights_sha256"]
        == hashlib.sha256((exported.work.root / "esm2_tiny.pt").read_bytes()).hexdigest()
    )


@pytest.mark.filterwarnings("ignore")
def test_scanpy_finds_the_neighbours_that_distances_give(exported: Exported) -> None:
    import scanpy

    data = scanpy.read_h5ad(exported.path(f"anndata/{OUTPUT}.h5ad"))
    # The method is that of the weights of neighbours alone; the usual one would be compiled for seconds.
    scanpy.pp.neighbors(data, n_neighbors=3, use_rep="X", transformer="sklearn", method="gauss")
    distances = np.linalg.norm(exported.vectors[:, None] - exported.vectors[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    found = data.obsp["distances"].toarray()
    for row in range(len(distances)):
        # Of records that are alike, rounding decides whether a distance of zero is listed.
        nearest, listed = np.sort(distances[row])[:2], np.sort(found[row][found[row] > 1e-6])
        assert np.allclose(listed, nearest[nearest > 1e-6], atol=1e-3)


def test_fair_esm_pt_equals_what_the_extract_script_writes_file_by_file(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The script refuses labels that come twice, and cannot write a file of a name so long.
    entries = [*exported.embedded[:5], *exported.embedded[7:10]]
    fasta = Workspace(tmp_path).write_fasta("valid.fasta", entries)
    weights = exported.work.root / "esm2_tiny.pt"
    arguments = ["--include", "mean", "bos", "per_tok", "contacts", "--repr_layers", "1", "-1", "--nogpu"]
    arguments += ["--workers", "0", "--truncation_seq_length", str(MAX_LENGTH)]
    inside = tmp_path / "a/b/c/out"
    monkeypatch.setattr(sys, "argv", list(map(str, [EXTRACT, weights, tmp_path / fasta, inside, *arguments])))
    runpy.run_path(str(EXTRACT), run_name="__main__")
    found = {unquote(path.stem): path for path in exported.path("fair_esm_pt").glob("*.pt")}
    for entry in entries:
        ours = torch.load(found[entry.header], weights_only=True)
        theirs = torch.load(inside / f"{entry.header}.pt", weights_only=True)
        assert ours.pop("label") == theirs.pop("label") == entry.header
        ours["contacts"], theirs["contacts"] = {0: ours["contacts"]}, {0: theirs["contacts"]}
        assert ours.keys() == theirs.keys()
        for name, values in theirs.items():
            assert ours[name].keys() == values.keys()
            for layer, value in values.items():
                assert ours[name][layer].shape == value.shape
                assert ours[name][layer].dtype == value.dtype
                assert torch.allclose(ours[name][layer], value, rtol=0, atol=1e-5), (entry.id, name, layer)


def test_fair_esm_pt_has_a_file_per_record_and_none_elsewhere(exported: Exported) -> None:
    directory = exported.path("fair_esm_pt")
    labels = {path.name: torch.load(path, weights_only=True)["label"] for path in directory.rglob("*.pt")}
    assert sorted(labels.values()) == sorted(entry.header for entry in exported.embedded)
    assert labels["twice.pt"] == labels["twice%-2.pt"] == "twice"
    assert labels["contig_1 # 2 # 181 # 1 # ID=1_1;partial=10.pt"]
    assert all(path.parent == directory for path in directory.rglob("*") if path.is_file())
    assert not list(exported.work.root.rglob("escape*"))
    saved = torch.load(directory / "twice%-2.pt", weights_only=True)
    assert np.array_equal(saved["mean_representations"][LAYERS], exported.vectors[6])
    assert (directory / "twice.pt").stat().st_size < 4 * EMBED_DIM * 2 * (MAX_LENGTH + 2) + 4 * MAX_LENGTH**2 + 8192


def test_all_that_the_config_asks_for_is_part_of_the_default_target(exported: Exported) -> None:
    result = exported.work.run("--dry-run")
    wanted = re.findall(r"output: (?:results/exports/s/tiny/)(\S+?),?(?:\s|$)", result.stdout + result.stderr)
    vectors = [f"layer{layer}.{kind}" for layer in (1, LAYERS) for kind in ("mean", "bos")]
    expected = {f"csv/{name}.csv.gz" for name in vectors} | {f"npy/{name}.npy" for name in vectors}
    expected |= {f"uniprot_h5/{name}/per-protein.h5" for name in vectors}
    expected |= {f"uniprot_h5/layer{layer}.per_tok/per-residue.h5" for layer in (1, LAYERS)}
    expected |= {f"bio_embeddings/{name}/reduced_embeddings_file.h5" for name in vectors}
    expected |= {f"anndata/{name}.h5ad" for name in vectors}
    assert set(wanted) == expected - set(FILES)
