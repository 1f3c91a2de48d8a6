"""Contigs of both kinds through the workflow: tables, status, tables of contigs."""

import gzip
import json
import random
import re
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from urllib.parse import unquote

import genomes
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import reference
import yaml
from Bio import SeqIO
from in_process import call
from workflow import ROOT, Workspace, error_line, matrix, worst_error, written_times

MODEL, LAYER, MAX_LENGTH = "tiny", 1, 150
OUTPUT = f"layer{LAYER}.mean"
STOPS = "TTAATTAATTAA" * 3


@pytest.fixture(scope="module")
def run(once: Callable[[str, Callable[[Path], None]], Path]) -> Workspace:
    """Samples of both kinds and of proteins in one, of genes, and of proteins alone, embedded by a tiny ESM-2."""
    return Workspace(once("contigs", run_all_kinds))


def run_all_kinds(directory: Path) -> None:
    work = Workspace(directory)
    reference.tiny_esm2(work.root / "tiny.pt")
    genome = genomes.contigs(genomes.demo_proteins()[:24], gc=0.5, seed=6, pieces=4)
    draw = random.Random(6)
    few_stops = {
        f"v{n}|a/b;c=d": "".join(draw.choices("ACGT", [8, 9, 9, 2], k=k)) for n, k in enumerate([700, 90, 300])
    }
    first, second, *_ = few_stops
    frames = genomes.fasta(few_stops | {"stops": STOPS})
    # A contig with the same ID again, and one that is none.
    frames += genomes.fasta({first: few_stops[second]}) + genomes.fasta({first: few_stops[second]}) + ">bad\nAC-GT\n"
    (work.root / "frames.fna").write_text(frames)
    (work.root / "genome.fna").write_text(genomes.fasta(genome | {"nothing": "ACGT"}))
    (work.root / "proteins.faa").write_text(">p1\nMKVLAAGTW\n>p2\nMA-\n")
    lines = ["sample,fasta,kind,code"]
    lines += ["mixed,proteins.faa,,", "mixed,frames.fna,six_frame,1", "mixed,genome.fna,genes,"]
    lines += ["genes,genome.fna,genes,11", "plain,proteins.faa,,"]
    (work.root / "samples.csv").write_text("\n".join(lines))
    model = {
        "weights": "tiny.pt",
        "layers": [LAYER],
        "representations": ["mean", "per_tok"],
        "long_sequences": "skip",
        "max_length": MAX_LENGTH,
    }
    work.write_config({MODEL: model}, samples="samples.csv", chunk=300, contigs=["mean", "max"], exports=["gff"])
    work.run()


def catalog(work: Workspace, sample: str) -> pd.DataFrame:
    return pd.read_parquet(work.root / "results/catalog" / f"{sample}.parquet")


def contig_table(work: Workspace, sample: str) -> pd.DataFrame:
    return pd.read_parquet(work.root / "results/contigs" / sample / MODEL / f"{OUTPUT}.parquet")


@pytest.mark.parametrize("sample", ["mixed", "genes"])
def test_every_contig_is_accounted_for_in_the_order_of_the_files(run: Workspace, sample: str) -> None:
    names = []
    for name in ("frames.fna", "genome.fna") if sample == "mixed" else ("genome.fna",):
        names += [line[1:] for line in (run.root / name).read_text().splitlines() if line.startswith(">")]
    assert contig_table(run, sample)["contig"].to_list() == names
    status = run.status(sample)
    assert status["id"].to_list() == catalog(run, sample)["id"].to_list()
    reasons = dict(zip(status["id"], status["reason"], strict=True))
    assert reasons["nothing"] == "no gene"
    if sample == "mixed":
        assert (reasons["stops"], reasons["bad"], reasons["p2"]) == ("no open frame", "gap", "gap")
    assert f"longer than {MAX_LENGTH} residues" in set(status["reason"])


@pytest.mark.parametrize("sample", ["mixed", "genes"])
def test_contigs_have_the_pooled_vectors_of_their_fragments(run: Workspace, sample: str) -> None:
    records = catalog(run, sample)
    starts = records["contig"].ne(records["contig"].shift()) | records["flags"].str.contains("another_contig")
    numbers = starts.cumsum()[(run.status(sample)["status"] == "embedded").to_numpy()]
    groups = pd.DataFrame(matrix(run.table(sample, MODEL, OUTPUT)), index=numbers).groupby(level=0)
    table = contig_table(run, sample)
    expected = starts.cumsum()[starts & records["contig"].notna()]
    assert table["fragments"].to_list() == groups.size().reindex(expected, fill_value=0).to_list()
    for pooling in ("mean", "max"):
        pooled = groups.agg(pooling).reindex(expected).dropna().to_numpy()
        np.testing.assert_allclose(
            matrix(table[[pooling]].dropna().rename(columns={pooling: "embedding"})), pooled, rtol=1e-5
        )
    assert table["mean"].isna().to_list() == table["max"].isna().to_list() == (table["fragments"] == 0).to_list()
    assert {0} < set(table["fragments"])


@pytest.mark.parametrize("sample", ["mixed", "genes"])
def test_a_gff_has_the_place_of_every_fragment_for_whoever_reads_it(run: Workspace, sample: str) -> None:
    header, *lines = (run.root / f"results/exports/{sample}/fragments.gff3").read_text().splitlines()
    assert header == "##gff-version 3"
    rows = []
    for line in lines:
        contig, source, type_, start, end, score, strand, phase, attributes = line.split("\t")
        named = dict(pair.split("=") for pair in attributes.split(";"))
        assert (source, score, phase) == ("esmflow", ".", "0")
        assert re.fullmatch(r"([a-zA-Z0-9.:^*$@!+_?-|]|%[0-9A-F]{2})+", contig)
        rows.append((unquote(contig), type_, int(start), int(end), strand, unquote(named["ID"]), named.get("partial")))
    records = catalog(run, sample)
    records = records[(records["status"] == "valid") & records["contig"].notna()]
    again = records.groupby("id").cumcount() + 1
    ids = [name if count == 1 else f"{name}%-{count}" for name, count in zip(records["id"], again, strict=True)]
    assert [row[5] for row in rows] == ids
    assert len(set(ids)) == len(ids)
    places = records[["contig", "start", "end", "strand"]].itertuples(index=False, name=None)
    assert [(row[0], *row[2:5]) for row in rows] == list(places)
    types = ["ORF" if "_chunk_" in name else "CDS" for name in records["id"]]
    assert [row[1] for row in rows] == types
    partial = records["flags"].str.extract(r"partial:(\d\d)")[0].fillna("00")
    assert [row[6] for row in rows] == [p if t == "CDS" else None for p, t in zip(partial, types, strict=True)]
    assert {"CDS"} <= set(types)


def test_a_gene_s_frame_is_that_of_its_gff(run: Workspace) -> None:
    """Biopython finds a record's residues where the GFF says."""
    genome = SeqIO.to_dict(SeqIO.parse(StringIO((run.root / "genome.fna").read_text()), "fasta"))
    sequences = pd.read_parquet(run.root / "results/sequences/genes.parquet").drop_duplicates("key").set_index("key")
    residues = {
        row.id: sequences["residues"][row.key].decode() for row in catalog(run, "genes").itertuples() if row.key
    }
    for line in (run.root / "results/exports/genes/fragments.gff3").read_text().splitlines()[1:]:
        contig, _, _, start, end, _, strand, _, attributes = line.split("\t")
        place = genome[contig].seq[int(start) - 1 : int(end)]
        read = str((place if strand == "+" else place.reverse_complement()).translate(11)).removesuffix("*")
        assert read[1:] == residues[attributes.split(";")[0].removeprefix("ID=")][1:]


@pytest.mark.parametrize("asked", [{"contigs": ["mean"]}, {"exports": ["gff"]}])
def test_what_is_made_of_contigs_is_refused_where_there_are_none(work: Workspace, asked: dict[str, list[str]]) -> None:
    reference.tiny_esm2(work.root / "tiny.pt")
    (work.root / "proteins.faa").write_text(">p\nMKV\n")
    work.write_samples([("plain", "proteins.faa")])
    work.write_config({MODEL: {"weights": "tiny.pt"}}, **asked)
    result = work.run(check=False)
    assert result.returncode == 78
    [(key, names)] = asked.items()
    assert f"config: {key if key == 'contigs' else f'{key}: {names[0]}'}: " in error_line(result)


def test_fragments_have_the_vectors_of_their_residues(run: Workspace, tmp_path: Path) -> None:
    model = reference.tiny_esm2(tmp_path / "again.pt")
    sequences = pd.read_parquet(run.root / "results/sequences/mixed.parquet").drop_duplicates("key").set_index("key")
    records = catalog(run, "mixed")[(run.status("mixed")["status"] == "embedded").to_numpy()]
    residues = [sequences["residues"][key].decode() for key in records["key"]]
    assert len(residues) > 20
    table = run.table("mixed", MODEL, OUTPUT)
    assert table["id"].to_list() == records["id"].to_list()
    assert worst_error(table, residues, lambda text: reference.represent(model, text), LAYER, "mean") < 1e-5


def test_a_sample_of_proteins_has_the_catalog_that_it_always_had_and_no_table_of_contigs(
    run: Workspace, tmp_path: Path
) -> None:
    arguments = ["--sample", "plain", "--catalog", tmp_path / "c.parquet", "--sequences", tmp_path / "s.parquet"]
    assert call("ingest", *arguments, "--", "proteins.faa", cwd=run.root).returncode == 0
    path = run.root / "results/catalog/plain.parquet"
    assert path.read_bytes() == (tmp_path / "c.parquet").read_bytes()
    assert len(pq.read_schema(path)) == 8
    assert sorted(path.name for path in (run.root / "results/contigs").iterdir()) == ["genes", "mixed"]
    assert [path.name for path in run.files("results/contigs/genes")] == [f"{OUTPUT}.parquet"]


def test_another_chunk_or_pooling_makes_anew_only_what_it_concerns(run: Workspace, work: Workspace) -> None:
    again = run.copy(work.root / "again")
    result = again.run()
    assert "Nothing to be done" in result.stdout + result.stderr
    catalogs = [again.root / "results/catalog" / f"{sample}.parquet" for sample in ("genes", "plain")]
    parts = ("features/genes", "features/plain", "exports/genes")
    kept = written_times(
        [*catalogs, *again.store_files(), *(p for part in parts for p in again.files(f"results/{part}"))]
    )
    # Only one of the samples has chunks; all that have contigs have them pooled.
    again.change_config(lambda config: config.update(contigs=["max"], chunk=240))
    again.run()
    assert written_times(kept) == kept
    assert list(contig_table(again, "genes")) == ["contig", "fragments", "max"]
    assert catalog(again, "mixed")["contig"].nunique() == catalog(run, "mixed")["contig"].nunique()
    assert len(catalog(again, "mixed")) != len(catalog(run, "mixed"))


def test_a_table_of_contigs_for_a_sample_of_proteins_ends_with_65(run: Workspace) -> None:
    arguments = ["--catalog", "results/catalog/plain.parquet", "--model", MODEL, "--store", "store"]
    spec = {"layers": [LAYER], "representations": ["mean"], "long_sequences": "skip", "max_length": MAX_LENGTH}
    arguments += ["--spec", json.dumps(spec | {"window_overlap": 0, "precision": "auto"})]
    arguments += ["--descriptor", f"results/models/{MODEL}.json", "--pooling", "mean", "--table", "x.parquet"]
    result = call("contigs", *arguments, cwd=run.root)
    assert result.returncode == 65
    assert "plain.parquet" in error_line(result)


def test_the_demo_of_contigs_runs_as_it_is_but_for_its_weights(work: Workspace) -> None:
    shutil.copytree(ROOT / "config" / "demo", work.root / "config" / "demo")
    config = yaml.safe_load((ROOT / "config" / "contigs.yaml").read_text())
    reference.tiny_esm2(work.root / "tiny.pt", layers=6)
    del config["models"]["esm2_8M"]["sha256"]
    config["models"]["esm2_8M"]["weights"] = "tiny.pt"
    (work.root / "config.yaml").write_text(yaml.safe_dump(config))
    work.run()
    genome = genomes.fasta(genomes.contigs(genomes.demo_proteins()[:60], gc=0.52, seed=16, pieces=5))
    assert gzip.decompress((ROOT / "config/demo/genome.fna.gz").read_bytes()).decode() == genome
    for sample, fragments in (("genes", 50), ("frames", 20)):
        table = pd.read_parquet(work.root / f"results/contigs_demo/contigs/{sample}/esm2_8M/layer6.mean.parquet")
        assert table["contig"].to_list() == [f"contig{number}" for number in range(1, 6)]
        assert table["fragments"].sum() > fragments
