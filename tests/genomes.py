"""Made-up bacterial genomes: real proteins written back to codons, with ribosome binding sites and spacers.

`python tests/genomes.py` writes that of the demo.
"""

import gzip
import random
from collections.abc import Sequence
from pathlib import Path

from Bio import SeqIO
from Bio.Data.CodonTable import unambiguous_dna_by_id
from Bio.Seq import Seq

DEMO = Path(__file__).parents[1] / "config" / "demo"
CODE = unambiguous_dna_by_id[11]


def demo_proteins() -> list[str]:
    """Proteins of the demo of 20 usual residues, that begin with M."""
    with gzip.open(DEMO / "demo_b.fasta.gz", "rt") as file:
        sequences = [str(record.seq) for record in SeqIO.parse(file, "fasta")]
    return [s for s in sequences if s[:1] == "M" and 80 <= len(s) <= 400 and not set(s) - set(CODE.protein_alphabet)]


def contigs(proteins: Sequence[str], gc: float, seed: int, pieces: int) -> dict[str, str]:
    """A genome of that share of G and C with a gene for each protein, cut at random into contigs, genes or not."""
    draw = random.Random(seed)

    def letters(count: int) -> str:
        return "".join(draw.choices("ACGT", [1 - gc, gc, gc, 1 - gc], k=count))

    def codon(residue: str) -> str:
        synonyms = [codon for codon, meaning in CODE.forward_table.items() if meaning == residue]
        weights = [(gc / (1 - gc)) ** (2 * sum(letter in "GC" for letter in codon)) for codon in synonyms]
        return draw.choices(synonyms, weights)[0]

    genome = letters(100)
    for protein in proteins:
        gene = "".join(map(codon, protein[1:]))
        unit = "AGGAGG" + letters(draw.randint(5, 9)) + "ATG" + gene + draw.choice(["TAA", "TAA", "TGA"])
        genome += draw.choice([unit, str(Seq(unit).reverse_complement())]) + letters(draw.randint(30, 200))
    cuts = sorted(draw.sample(range(1, len(genome)), pieces - 1))
    return {f"contig{n}": genome[a:b] for n, (a, b) in enumerate(zip([0, *cuts], [*cuts, len(genome)], strict=True), 1)}


def fasta(contigs: dict[str, str]) -> str:
    """The contigs in lines of 70."""
    return "".join(
        f">{name}\n" + "".join(f"{letters[at : at + 70]}\n" for at in range(0, len(letters), 70))
        for name, letters in contigs.items()
    )


if __name__ == "__main__":
    genome = fasta(contigs(demo_proteins()[:60], gc=0.52, seed=16, pieces=5))
    (DEMO / "genome.fna.gz").write_bytes(gzip.compress(genome.encode(), mtime=0))
