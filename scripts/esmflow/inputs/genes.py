"""Kind `genes`: the genes in contigs, found by pyrodigal as Prodigal does in its metagenomic mode."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from esmflow.errors import ConfigError
from esmflow.inputs import fasta
from esmflow.inputs.nucleotides import Contig, fragments
from esmflow.origin import Origin

if TYPE_CHECKING:
    import pyrodigal

#: Letters of the longest contig that Prodigal takes (its MAX_SEQ); the memory that this needs is in docs/inputs.md.
_LONGEST = 32_000_000


def codes() -> tuple[int, ...]:
    """The genetic codes of the genomes that Prodigal has learned its metagenomic mode from, as NCBI numbers them."""
    return 4, 11


def read(file: fasta.Fasta, scratch: Path) -> Iterator[tuple[int, fasta.Record]]:
    """The proteins of a file's contigs, each with its contig's line, in the order of their genes.

    Their IDs are Prodigal's, `{contig}_{n}`. A gene that begins or ends beyond its contig has a flag: `partial:10` on
    the left of the forward strand, `partial:01` on the right, `partial:11` on both. A start codon is M; the stop codon
    is part of the gene, and not of its protein.
    Raises ConfigError if pyrodigal is not installed, and DataError as `nucleotides.contigs` does.
    """
    find = partial(_genes, finder=_finder(file))
    return fragments(file, scratch, find, none="no gene", longest=_LONGEST)


def _finder(file: fasta.Fasta) -> "pyrodigal.GeneFinder":
    try:
        import pyrodigal
    except ImportError:
        raise ConfigError(
            f"{file.path}: kind 'genes' needs pyrodigal, which is not installed; install it where ingest runs (pip "
            "install pyrodigal; its licence is GPL-3), or write 'six_frame'"
        ) from None
    bins = [part for part in pyrodigal.METAGENOMIC_BINS if file.code in (None, part.training_info.translation_table)]
    return pyrodigal.GeneFinder(meta=True, metagenomic_bins=pyrodigal.MetagenomicBins(bins))


def _genes(contig: Contig, finder: "pyrodigal.GeneFinder") -> Iterator[fasta.Record]:
    for number, gene in enumerate(finder.find_genes(contig.read(0, contig.length)), 1):
        flags = contig.flags
        if gene.partial_begin or gene.partial_end:
            flags += (f"partial:{gene.partial_begin:d}{gene.partial_end:d}",)
        strand, before = ("+", gene.begin - 1) if gene.strand == 1 else ("-", contig.length - gene.end)
        yield fasta.Record(
            f"{contig.id}_{number}",
            contig.description,
            gene.translate(include_stop=False).encode(),
            flags,
            None,
            Origin(contig.id, gene.begin, gene.end, strand, before % 3 + 1),
        )
