"""Kind `genes`: against pyrodigal's own output, and Biopython for coordinates, on made-up genomes."""

from collections.abc import Callable
from pathlib import Path

import genomes
import pyrodigal
import pytest
from Bio.Seq import Seq
from esmflow.inputs import genes
from esmflow.inputs.fasta import Fasta
from ingestion import catalog_of, command, outputs, run

GENOMES = [(0.35, 1), (0.5, 2), (0.66, 3)]


@pytest.fixture(scope="module", params=GENOMES, ids=lambda genome: f"GC {genome[0]:.0%}")
def genome(request: pytest.FixtureRequest) -> dict[str, str]:
    gc, seed = request.param
    return genomes.contigs(genomes.demo_proteins(), gc, seed, pieces=12) | {"empty_of_genes": "ACGTTTAAC"}


def write(path: Path, contigs: dict[str, str], change: Callable[[str], str] = str) -> Fasta:
    path.write_text(genomes.fasta({name: change(letters) for name, letters in contigs.items()}))
    return Fasta(path, "genes")


def test_genes_are_pyrodigals_own_row_by_row(tmp_path: Path, genome: dict[str, str]) -> None:
    found = catalog_of(tmp_path, write(tmp_path / "g.fna", genome))
    finder = pyrodigal.GeneFinder(meta=True)
    expected = []
    for name, letters in genome.items():
        calls = finder.find_genes(letters)
        for number, gene in enumerate(calls, 1):
            place = (name, gene.begin, gene.end, "+" if gene.strand > 0 else "-")
            partial = f"partial:{int(gene.partial_begin)}{int(gene.partial_end)}"
            flags = "" if partial == "partial:00" else partial
            expected.append((f"{name}_{number}", gene.translate().removesuffix("*"), "valid", None, flags, *place))
        if not calls:
            expected.append((name, "", "skipped", "no gene", "", name, 1, len(letters), None))
    columns = ("id", "residues", "status", "reason", "flags", "contig", "start", "end", "strand")
    assert [tuple(row[column] for column in columns) for row in found] == expected
    assert {flags for _, _, _, _, flags, *_ in expected} >= {"partial:10", "partial:01"}
    assert len(expected) > 70


def test_a_gene_reads_back_from_its_place_as_its_residues(tmp_path: Path, genome: dict[str, str]) -> None:
    found = catalog_of(tmp_path, write(tmp_path / "g.fna", genome))
    complete = 0
    for row in found:
        if row["status"] == "skipped":
            continue
        strand = Seq(genome[row["contig"]])
        begin, end, edges = row["start"] - 1, row["end"], row["flags"].removeprefix("partial:") or "00"
        if row["strand"] == "-":
            strand, edges = strand.reverse_complement(), edges[::-1]
            begin, end = len(strand) - end, len(strand) - begin
        read = str(strand[begin:end].translate(11))
        first = read[0] if edges[0] == "1" else "M"
        assert first + read[1:].removesuffix("*") == row["residues"]
        assert read.endswith("*") == (edges[1] == "0")
        assert begin % 3 == row["frame"] - 1
        complete += edges == "00"
    assert complete > 50


def test_most_genes_of_a_made_up_genome_are_its_proteins(tmp_path: Path, genome: dict[str, str]) -> None:
    proteins = set(genomes.demo_proteins())
    found = {row["residues"] for row in catalog_of(tmp_path, write(tmp_path / "g.fna", genome))}
    assert len(proteins & found) > 0.7 * len(proteins)


@pytest.mark.parametrize("change", [str.lower, lambda letters: letters.replace("T", "U")], ids=["lower case", "RNA"])
def test_case_and_rna_make_no_other_genes(tmp_path: Path, genome: dict[str, str], change: Callable[[str], str]) -> None:
    def places(file: Fasta) -> list[tuple[object, ...]]:
        return [(row["id"], row["start"], row["end"], row["residues"]) for row in catalog_of(tmp_path, file)]

    assert places(write(tmp_path / "c.fna", genome, change)) == places(write(tmp_path / "g.fna", genome))


@pytest.mark.parametrize("code", [4, 11])
def test_a_genetic_code_that_is_written_is_that_of_every_gene(tmp_path: Path, code: int) -> None:
    # The stop codon TGA of code 11 is tryptophan in code 4, so that genes run on to the next TAA or TAG.
    genome = genomes.contigs(genomes.demo_proteins(), gc=0.35, seed=4, pieces=3)
    file = write(tmp_path / "g.fna", genome)
    found = catalog_of(tmp_path, Fasta(file.path, "genes", code))
    bins = [part for part in pyrodigal.METAGENOMIC_BINS if part.training_info.translation_table == code]
    finder = pyrodigal.GeneFinder(meta=True, metagenomic_bins=pyrodigal.MetagenomicBins(bins))
    expected = [
        gene.translate(include_stop=False) for letters in genome.values() for gene in finder.find_genes(letters)
    ]
    assert [row["residues"] for row in found if row["status"] == "valid"] == expected
    assert len(expected) > 50
    assert set(genes.codes()) == {part.training_info.translation_table for part in pyrodigal.METAGENOMIC_BINS}


def test_a_contig_that_is_too_long_for_prodigal_is_skipped_with_that_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(genes, "_LONGEST", 3000)
    genome = genomes.contigs(genomes.demo_proteins()[:8], gc=0.5, seed=5, pieces=1)
    [name] = genome
    found = catalog_of(tmp_path, write(tmp_path / "g.fna", genome | {"short": genome[name][:3000]}))
    assert (found[0]["id"], found[0]["reason"], found[0]["start"]) == (name, "more than 3,000 nucleotides", None)
    assert {row["contig"] for row in found[1:]} == {"short"}
    assert all(row["status"] == "valid" for row in found[1:])


def test_without_pyrodigal_one_line_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "missing").mkdir()
    (tmp_path / "missing" / "pyrodigal.py").write_text("raise ImportError")
    file = write(tmp_path / "g.fna", {"c": "ACGT" * 50})
    arguments = [*command(tmp_path, file.path, log=tmp_path / "log"), "--kind", "genes"]
    result = run(arguments, PYTHONPATH=str(tmp_path / "missing"))
    assert result.returncode == 78
    [line] = result.stderr.splitlines()
    assert "pip install pyrodigal" in line
    assert not any(path.exists() for path in outputs(tmp_path))
    assert run([*arguments[:-1], "six_frame"], PYTHONPATH=str(tmp_path / "missing")).returncode == 0
