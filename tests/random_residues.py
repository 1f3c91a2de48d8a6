"""Proteins that no protein is: residues drawn at random."""

import random

#: The twenty amino acids, and with them the letters that a model has tokens for as well.
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
ALL_LETTERS = f"{LETTERS}XBZUO"


def residues(length: int, seed: int = 0, letters: str = LETTERS) -> str:
    """So many residues, the same ones for each seed."""
    return "".join(random.Random(seed).choices(letters, k=length))
