"""The alphabet of ESM-1b, ESM-1v and ESM-2: its tokens, in the order of their numbers.

ESM-C's is the same but for `|`, which parts chains and which no sequence has, in the place of `<null_1>`. Its embedding
and its logits have 64 rows, of which those beyond these tokens stand for nothing.
"""

#: As fair-esm has them (`esm.data.Alphabet`, architecture ESM-1b).
TOKENS = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]
BOS, PADDING, EOS, UNKNOWN, MASK = (TOKENS.index(name) for name in ("<cls>", "<pad>", "<eos>", "<unk>", "<mask>"))

#: Stands for the mask token in the text of a masked copy; no cleaned sequence has it.
MASK_LETTER = "#"
#: The amino acids of which likelihoods are told, in this order, and the numbers of their tokens.
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
AMINO_ACID_TOKENS = [TOKENS.index(letter) for letter in AMINO_ACIDS]
