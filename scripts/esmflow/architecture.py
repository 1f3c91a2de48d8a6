"""The shape of an ESM trunk, and what follows from it."""

from dataclasses import dataclass

import numpy as np

from esmflow.alphabet import TOKENS


@dataclass(frozen=True)
class Architecture:
    """The shape of an ESM trunk, as read from a weights file."""

    kind: str
    """`ESM-2`, `ESM-1b` (learned positions: ESM-1b and ESM-1v) or `ESM-C`."""
    layers: int
    embed_dim: int
    heads: int
    ffn_dim: int
    token_dropout: bool
    max_residues: int | None
    """The longest sequence the positions reach; None for rotary positions."""
    lm_head: bool
    """Whether logits can be had."""
    contact_head: bool
    """Whether contacts can be had."""
    norm_eps: float = 1e-5
    """What LayerNorms add to the variance."""
    vocabulary: int = len(TOKENS)
    """The tokens of the embedding, and of the logits."""

    @property
    def half_precision(self) -> str:
        """The 16 bit that suits it.

        fp16 has the smaller error, bf16 has room for the activations of ESM-C, which grow large.
        """
        return "bf16" if self.kind == "ESM-C" else "fp16"

    @property
    def head_dim(self) -> int:
        """Components of a query, key or value in each head."""
        return self.embed_dim // self.heads

    @property
    def layer_numbers(self) -> int:
        """Numbers in the matrices of a layer. A SwiGLU network (ESM-C) has three, one with a GELU two."""
        matrices = 3 if self.kind == "ESM-C" else 2
        return 4 * self.embed_dim**2 + matrices * self.embed_dim * self.ffn_dim

    @property
    def matrix_numbers(self) -> int:
        """Numbers in the matrices of all layers: nearly all that there are in the trunk."""
        return self.layers * self.layer_numbers

    def flops(self, tokens: np.ndarray, layers: int) -> np.ndarray:
        """Floating-point operations of the first `layers` layers (at least one), linear and attention.

        tokens: int [sequences], residues plus BOS and EOS. A multiplication and an addition count as two. Returns
        float64 [sequences].
        """
        linear = 2 * self.layer_numbers
        operations: np.ndarray = max(layers, 1) * tokens.astype(np.float64) * (linear + 4 * self.embed_dim * tokens)
        return operations
