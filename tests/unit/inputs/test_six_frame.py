"""Kind `six_frame`: against VirNucPro's own output, and Biopython for codes and coordinates."""

import gzip
import random
from itertools import pairwise
from pathlib import Path

import pytest
from Bio import SeqIO
from Bio.Data import CodonTable
from Bio.Seq import Seq
from conftest import ROOT
from esmflow.inputs import six_frame
from esmflow.inputs.fasta import Fasta
from ingestion import Rows, catalog_of

DATA = ROOT / "tests" / "data"


def translated(contig: str, row: dict[str, object], code: int = 1) -> str:
    """What Biopython reads at a row's place: unambiguous codons only."""
    nucleotides = Seq(contig[int(str(row["start"])) - 1 : int(str(row["end"]))].upper())
    if row["strand"] == "-":
        nucleotides = nucleotides.reverse_complement()
    return without_ambiguous(str(nucleotides), code)


def without_ambiguous(nucleotides: str, code: int = 1) -> str:
    """What Biopython makes of the unambiguous codons of a reading frame."""
    codons = [nucleotides[place : place + 3] for place in range(0, len(nucleotides), 3)]
    return str(Seq("".join(codon for codon in codons if not set(codon) - set("ACGT"))).translate(code))


@pytest.fixture(scope="module")
def contigs() -> dict[str, str]:
    with (DATA / "contigs.fna").open() as file:
        return {record.id: str(record.seq) for record in SeqIO.parse(file, "fasta")}


def oracle(chunk: int) -> list[dict[str, str]]:
    with gzip.open(DATA / f"six_frame_{chunk}.tsv.gz", "rt") as file:
        header, *lines = [line.rstrip("\n").split("\t") for line in file]
    return [dict(zip(header, line, strict=True)) for line in lines]


@pytest.mark.parametrize("chunk", [300, 500])
def test_fragments_are_virnucpros_row_by_row(tmp_path: Path, contigs: dict[str, str], chunk: int) -> None:
    found = catalog_of(tmp_path, Fasta(DATA / "contigs.fna", "six_frame", chunk=chunk))
    valid = [row for row in found if row["status"] == "valid"]
    expected = oracle(chunk)
    assert [(row["id"], row["residues"]) for row in valid] == [(row["id"], row["protein"]) for row in expected]
    for row, theirs in zip(valid, expected, strict=True):
        assert row["contig"] == theirs["id"].rpartition("_chunk_")[0]
        assert (row["strand"], row["frame"]) == ({"F": "+", "R": "-"}[theirs["id"][-2]], int(theirs["id"][-1]))
        assert translated(contigs[row["contig"]], row) == row["residues"]
        # VirNucPro's nucleotides end early where codons were left out.
        size = 3 * min(len(row["residues"]), (row["end"] - row["start"] + 1) // 3)
        read = Seq(contigs[row["contig"]][row["start"] - 1 : row["end"]])
        read = read if row["strand"] == "+" else read.reverse_complement()
        assert str(read.upper())[:size] == theirs["nucleotide"].upper()[:size]
    assert {row["contig"] for row in found} == set(contigs)
    order = list(contigs)
    assert [order.index(row["contig"]) for row in found] == sorted(order.index(row["contig"]) for row in found)
    assert all(row["reason"] == "no open frame" for row in found if row["status"] == "skipped")


def test_left_out_codons_are_told_by_a_flag(tmp_path: Path, contigs: dict[str, str]) -> None:
    found = catalog_of(tmp_path, Fasta(DATA / "contigs.fna", "six_frame", chunk=300))
    for row in found:
        if row["status"] == "valid":
            left_out = (row["end"] - row["start"] + 1) // 3 - len(row["residues"])
            flags = [flag for flag in row["flags"].split(",") if flag.startswith("ambiguous")]
            assert flags == ([f"ambiguous_codons:{left_out}"] if left_out else [])
    assert sum("ambiguous_codons" in row["flags"] for row in found) > 5


def random_contigs(path: Path, count: int) -> dict[str, str]:
    draw = random.Random(count)
    lengths = [*range(1, 12), *(draw.randint(12, 900) for _ in range(count - 11))]
    # Few T, so that stops are few in every code.
    contigs = {f"c{number}": "".join(draw.choices("ACGTN", [8, 9, 9, 3, 1], k=k)) for number, k in enumerate(lengths)}
    path.write_text("".join(f">{name}\n{letters}\n" for name, letters in contigs.items()))
    return contigs


# It tells of codons that are a residue as well as a stop.
@pytest.mark.filterwarnings("ignore::Bio.BiopythonWarning")
@pytest.mark.parametrize("code", sorted(six_frame.codes()))
def test_every_genetic_code_is_read_as_biopython_reads_it(tmp_path: Path, code: int) -> None:
    assert code in CodonTable.unambiguous_dna_by_id
    contigs = random_contigs(tmp_path / "a.fna", 60)
    found: Rows = catalog_of(tmp_path, Fasta(tmp_path / "a.fna", "six_frame", code, chunk=90))
    valid = [row for row in found if row["status"] == "valid"]
    assert len(valid) > 200
    for row in valid:
        assert translated(contigs[row["contig"]], row, code) == row["residues"]
        assert "*" not in row["residues"]


@pytest.mark.parametrize("chunk", [3, 10, 90])
def test_all_open_frames_of_all_chunks_are_there_and_no_others(tmp_path: Path, chunk: int) -> None:
    contigs = random_contigs(tmp_path / "a.fna", 60)
    found = catalog_of(tmp_path, Fasta(tmp_path / "a.fna", "six_frame", chunk=chunk))
    expected = []
    for name, letters in contigs.items():
        for number, start in enumerate(six_frame.chunk_starts(len(letters), chunk), 1):
            piece = Seq(letters[start : start + chunk])
            for label, strand in (("F", str(piece)), ("R", str(piece.reverse_complement()))):
                for frame in range(3):
                    residues = without_ambiguous(strand[frame : len(strand) - (len(strand) - frame) % 3])
                    if residues and "*" not in residues:
                        expected.append((f"{name}_chunk_{number}{label}{frame + 1}", residues))
    assert [(row["id"], row["residues"]) for row in found if row["residues"]] == expected


@pytest.mark.parametrize("chunk", [3, 7, 300, 500])
def test_chunks_cover_a_contig_with_as_few_as_can_be(chunk: int) -> None:
    for length in range(1, 8 * chunk):
        starts = six_frame.chunk_starts(length, chunk)
        assert len(starts) == -(-length // chunk)
        assert starts[0] == 0
        assert starts[-1] < length <= starts[-1] + chunk
        steps = {b - a for a, b in pairwise(starts)}
        assert all(0 < step <= chunk for step in steps)
        assert max(steps, default=0) - min(steps, default=0) <= 1


def test_contigs_longer_than_what_is_translated_together_are_no_different(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_contigs(tmp_path / "a.fna", 40)
    file = Fasta(tmp_path / "a.fna", "six_frame", chunk=30)
    expected = catalog_of(tmp_path, file)
    monkeypatch.setattr(six_frame, "_TOGETHER", 70)
    assert catalog_of(tmp_path, file) == expected
