"""The alphabet of ESM-1b, ESM-1v and ESM-2: its tokens, in the order of their numbers."""

#: As fair-esm has them (`esm.data.Alphabet`, architecture ESM-1b).
TOKENS = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]
BOS, PADDING, EOS, UNKNOWN, MASK = (TOKENS.index(name) for name in ("<cls>", "<pad>", "<eos>", "<unk>", "<mask>"))
