"""Files that are no FASTA are refused by the name of what they are."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from Bio import AlignIO, SeqIO
from Bio.Align import MultipleSeqAlignment
from Bio.Seq import Seq
from Bio.SeqRecord import SeqRecord
from esmflow.errors import DataError
from esmflow.inputs import fasta

PROTEIN = "MKTAYIAKQRQISFVKSHFSRQ"
DNA = "ATGAAAACCGCGTATATTGCG"


def written(kind: str, letters: str = PROTEIN, molecule: str = "protein") -> bytes:
    """What Biopython writes of one record in that format."""
    record = SeqRecord(Seq(letters), "P1", "P1", "a kinase", annotations={"molecule_type": molecule})
    if kind == "fastq":
        record.letter_annotations["phred_quality"] = [40] * len(letters)
    text = io.StringIO()
    SeqIO.write([record], text, kind)
    return text.getvalue().encode()


def aligned(kind: str) -> bytes:
    rows = [
        SeqRecord(Seq(letters), name, annotations={"molecule_type": "protein"})
        for name, letters in [("P1", "MK-V"), ("P2", "MKLV")]
    ]
    text = io.StringIO()
    AlignIO.write(MultipleSeqAlignment(rows), text, kind)
    return text.getvalue().encode()


def zipped(member: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(member, f">P1\n{PROTEIN}\n")
    return content.getvalue()


def tarred(form: int = tarfile.PAX_FORMAT) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=form) as archive:
        member = tarfile.TarInfo("proteins.fasta")
        member.size = 4
        archive.addfile(member, io.BytesIO(b">P1\n"))
    return content.getvalue()


FORMATS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "FASTQ": ("FASTQ", lambda: written("fastq", DNA, "DNA")),
    "GenBank": ("GenBank", lambda: written("genbank", DNA, "DNA")),
    "GenPept": ("GenBank", lambda: written("genbank")),
    "EMBL": ("EMBL", lambda: written("embl", DNA, "DNA")),
    "Swiss-Prot": ("Swiss-Prot", lambda: b"ID   P1_HUMAN   Reviewed;   22 AA.\nAC   P1;\nSQ   SEQUENCE\n     MKTAY\n"),
    "PIR": ("PIR", lambda: written("pir")),
    "PIR of a complete protein": ("PIR", lambda: b">P1;CRAB_ANAPL\nHEMOGLOBIN\nMKTAY*\n"),
    "Stockholm": ("Stockholm", lambda: aligned("stockholm")),
    "Clustal": ("Clustal", lambda: aligned("clustal")),
    "PHYLIP": ("PHYLIP", lambda: aligned("phylip")),
    "NEXUS": ("NEXUS", lambda: aligned("nexus")),
    "PDB": ("PDB", lambda: b"HEADER    OXYGEN TRANSPORT   101M\nTITLE     SPERM WHALE MYOGLOBIN\n"),
    "PDB of atoms alone": ("PDB", lambda: b"ATOM      1  N   MET A   0      24.277   8.374  -9.854\n"),
    "mmCIF": ("mmCIF", lambda: b"data_101M\n#\n_entry.id   101M\n"),
    "GFF": ("GFF", lambda: b"##gff-version 3\nc1\tP\tCDS\t1\t9\t.\t+\t0\tID=a\n##FASTA\n>c1\nACGT\n"),
    "GTF": ("GTF", lambda: b'c1\tensembl\tCDS\t1\t9\t.\t+\t0\tgene_id "a";\n'),
    "HTML": ("HTML", lambda: b"\n<!DOCTYPE html>\n<html><pre>>P1\nMKV\n</pre></html>\n"),
    "XHTML": ("HTML", lambda: b'<?xml version="1.0"?>\n<html xmlns="http://www.w3.org/1999/xhtml">'),
    "XML": ("XML", lambda: b'<?xml version="1.0"?>\n<uniprot>'),
    "JSON": ("JSON", lambda: b'{"id": "P1", "sequence": "MKV"}'),
    "JSON list": ("JSON", lambda: b'[\n  {"id": "P1"}\n]'),
    "zip": ("zip", lambda: zipped("proteins.fasta")),
    "Word": ("Word", lambda: zipped("word/document.xml")),
    "old Word": ("Word", lambda: bytes.fromhex("d0cf11e0a1b11ae1") + bytes(600)),
    "RTF": ("Word", lambda: rb"{\rtf1\ansi >P1}"),
    "PDF": ("PDF", lambda: b"%PDF-1.7\n"),
    "tar": ("tar", tarred),
    "tar of GNU": ("tar", lambda: tarred(tarfile.GNU_FORMAT)),
    "SAM": ("SAM", lambda: b"@HD\tVN:1.6\n@SQ\tSN:c1\tLN:9\n"),
    "VCF": ("VCF", lambda: b"##fileformat=VCFv4.2\n"),
    "HMMER": ("HMMER", lambda: b"HMMER3/f [3.3]\nNAME  x\n"),
    "binary": ("binary", lambda: bytes(range(256)) * 4),
    "UTF-16": ("UTF-16", lambda: ">P1\nMKV\n".encode("utf-16")),
    "UTF-16 without mark": ("UTF-16", lambda: ">P1\nMKV\n".encode("utf-16-be")),
    "UTF-32 without mark": ("UTF-32", lambda: ">P1\nMKV\n".encode("utf-32-le")),
    "7z": ("compressed in a way", lambda: b"7z\xbc\xaf\x27\x1c\0\4"),
    "LZMA without container": ("compressed in a way", lambda: lzma.compress(b">P1\nMKV\n", lzma.FORMAT_ALONE)),
    "gzip": ("compressed twice", lambda: gzip.compress(b">P1\nMKV\n")),
}  # fmt: skip
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.compress,
}


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        list(fasta.read(path))
    text = str(caught.value)
    assert text.isprintable()
    assert text.startswith(f"{path}: is ")
    assert "FASTA" in text
    return text


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "gzip"])
def test_each_format_is_refused_by_its_name_with_advice(tmp_path: Path, name: str) -> None:
    expected, content = FORMATS[name]
    (tmp_path / "a.txt").write_bytes(content())
    said, _, advice = refusal(tmp_path / "a.txt").partition("not FASTA; ")
    assert expected in said
    assert advice


@pytest.mark.parametrize("compression", [name for name in COMPRESS if name != "plain"])
@pytest.mark.parametrize("name", ["tar", "FASTQ", "gzip", "UTF-16"])
def test_a_format_is_told_within_compressed_files(tmp_path: Path, name: str, compression: str) -> None:
    expected, content = FORMATS[name]
    (tmp_path / "a.fa").write_bytes(COMPRESS[compression](content()))
    assert expected in refusal(tmp_path / "a.fa")


def test_pir_after_fasta_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_bytes(b">a\nMKV\n" + written("pir"))
    assert "PIR" in refusal(tmp_path / "a.fa")


@pytest.mark.parametrize(
    "content",
    [
        b">P1 LOCUS tag\nMKV\n",
        b">Q1;x\nMKV\n",
        b">@HD\nMKV\n",
        b">" + b"a" * 250 + b" mustard kinase\nMKV\n",
        b">a " + b"d" * 254 + b"ustar\nMKV\n",
        b"\xef\xbb\xbf\n;ID   a comment\n>a\nMKV\n",
        b">a\0b\nMKV\n",
        b"--\n>a\nMKV\n",
    ],
)
def test_a_fasta_that_only_sounds_like_another_format_is_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.fa").write_bytes(content)
    [record] = map(fasta.clean, fasta.read(tmp_path / "a.fa"))
    assert record.residues == b"MKV"
