"""What a file is that is no FASTA: told by its first bytes, with what to do about it."""

import re
from pathlib import Path
from typing import NamedTuple

from esmflow.errors import DataError
from esmflow.inputs.compressed import BZIP2, GZIP, XZ, ZSTD

#: Bytes of a file's beginning that its format is told from; a tar archive has its mark after 257.
HEAD = 8192
_BLANKS = b" \t\r\n\v\f"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_UNPACK = "unpack it and give the FASTA files within"
_CONVERT = "convert it to FASTA (Biopython's SeqIO reads it)"
_UNGAPPED = "convert it to FASTA and remove the gaps (Biopython's SeqIO reads it)"
_UTF_8 = "save it as UTF-8 (iconv -f {} -t UTF-8)"
_EXPORT = "save its sequences as plain text in FASTA"
_TRANSLATE = "it holds nucleotides: give contigs, or the proteins that they encode, as FASTA"
_DOWNLOAD = "download the sequences themselves, as FASTA"


class _Format(NamedTuple):
    name: str
    beginning: re.Pattern[bytes]
    advice: str


def _format(name: str, beginning: bytes, advice: str) -> _Format:
    return _Format(name, re.compile(beginning, re.DOTALL), advice)


#: In this order: the first whose beginning fits is the file's. White space and a UTF-8 mark before it are passed over.
_FORMATS = (
    _format("compressed twice", b"|".join(map(re.escape, (GZIP, BZIP2, XZ, *ZSTD))), "decompress it once"),
    _format(
        "a Word, Excel or OpenDocument file",
        rb"PK\x03\x04.{26}(\[Content_Types|_rels/|docProps/|word/|xl/|mimetype)|\xd0\xcf\x11\xe0|\{\\rtf",
        _EXPORT,
    ),
    _format("a zip archive", rb"PK\x03\x04|PK\x05\x06", _UNPACK),
    _format("a tar archive", rb".{257}ustar(\x0000|  \x00)", _UNPACK),
    _format(
        "compressed in a way that is not read here (gzip, bzip2, xz and zstd are)",
        rb"7z\xbc\xaf\x27\x1c|Rar!|LZIP|\x04\x22\x4d\x18|\x1f[\x9d\xa0]|\x5d\x00\x00",
        _UNPACK,
    ),
    _format("a PDF", rb"%PDF", _EXPORT),
    _format("UTF-32 text", rb"\xff\xfe\0\0|([\t\n\r -~]\0\0\0){2}", _UTF_8.format("UTF-32LE")),
    _format("UTF-32 text", rb"\0\0\xfe\xff|(\0\0\0[\t\n\r -~]){2}", _UTF_8.format("UTF-32BE")),
    _format("UTF-16 text", rb"\xff\xfe|([\t\n\r -~]\0){2}", _UTF_8.format("UTF-16LE")),
    _format("UTF-16 text", rb"\xfe\xff|(\0[\t\n\r -~]){2}", _UTF_8.format("UTF-16BE")),
    _format("SAM, BAM or CRAM", rb"@(HD|SQ|RG|PG|CO)\t|BAM\x01|CRAM", _TRANSLATE),
    _format("FASTQ", rb"@", _TRANSLATE),
    _format("VCF", rb"##fileformat=VCF", _TRANSLATE),
    _format("GenBank", rb"LOCUS\s", _CONVERT),
    _format("EMBL or Swiss-Prot text", rb"ID {2,}\S", _CONVERT),
    _format("PIR (NBRF)", rb">(P1|F1|D1|DL|DC|RL|RC|N1|N3|XX);", _CONVERT),
    _format("a Stockholm alignment", rb"# STOCKHOLM", _UNGAPPED),
    _format("a Clustal alignment", rb"CLUSTAL|MUSCLE \(", _UNGAPPED),
    _format("an MSF alignment", rb"!!(AA|NA)_MULTIPLE|PileUp", _UNGAPPED),
    _format("a NEXUS alignment", rb"(?i)#NEXUS", _UNGAPPED),
    _format("a PHYLIP alignment", rb"\d+[ \t]+\d+[ \t]*[\r\n]", _UNGAPPED),
    _format("an HMMER profile", rb"HMMER\d", _DOWNLOAD),
    _format(
        "PDB",
        rb"(HEADER|OBSLTE|TITLE|COMPND|SOURCE|KEYWDS|EXPDTA|AUTHOR|REMARK|SEQRES|CRYST1|MODEL|ATOM|HETATM) ",
        _CONVERT,
    ),
    _format("mmCIF", rb"data_\S|#\\#CIF", _CONVERT),
    _format(
        "GFF or GTF",
        rb"##gff-version|#gtf-version|#!genome-build|[^\t\n]+(\t[^\t\n]+){2}(\t\d+){2}\t[^\t\n]+\t[+.?-]\t[.012]\t",
        "it holds annotations: give the proteins that they are of, as FASTA",
    ),
    _format("HTML, a web page", rb"(?i)(<\?xml[^>]*>\s*)?<(!doctype html|html|head|body)", _DOWNLOAD),
    _format("XML", rb"<[?!a-zA-Z]", _CONVERT),
    _format("JSON", rb"[\[{]\s*[\[{\"\]}\d-]", _EXPORT),
    _format("binary data", rb"(?![>;]).*?[\0-\x08\x0e-\x1a\x7f]", "give a FASTA file"),
)


def refuse_others(path: Path, head: bytes) -> None:
    """Raise DataError, with name and advice, if the first `HEAD` bytes of a file are those of another format."""
    beginning = head.lstrip(_BLANKS).removeprefix(_BYTE_ORDER_MARK).lstrip(_BLANKS)
    for name, pattern, advice in _FORMATS:
        if pattern.match(beginning):
            raise DataError(f"{path}: is {name}, not FASTA; {advice}")
