"""Rotary positions (Su et al. 2021, arXiv:2104.09864), as ESM-2 and ESM-C have them."""

import torch

from esmflow.model.family import Rotate


def frequencies(head_dim: int, device: torch.device) -> torch.Tensor:
    """The inverse frequencies with the base 10,000: float32 [head_dim / 2]."""
    exponents = torch.arange(0, head_dim, 2, device=device).float() / head_dim
    return 1.0 / (10000**exponents)


def arrange(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Bring the two components of each rotary pair, which checkpoints have half a head apart, side by side.

    rows: [embed_dim, ...], of the weights of queries or of keys. Both are permuted alike, so that their dot products
    stay what they were.
    """
    order = torch.arange(len(rows), device=rows.device).view(-1, 2, head_dim // 2).transpose(1, 2).flatten()
    return rows[order]


class Rotary:
    """Tokens alone make the embedding; queries and keys, with their rows arranged, are turned by their positions."""

    def __init__(self, inverse_frequencies: torch.Tensor) -> None:
        self._inverse_frequencies = inverse_frequencies

    def embed(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Layer 0 is the tokens' embedding: float32 [total tokens, embed_dim]."""
        return x

    def rotation(self, positions: torch.Tensor) -> Rotate:
        """What turns qkv in place: each pair of a query's or key's components by its position's angle."""
        angles = positions.float()[:, None] * self._inverse_frequencies
        turn = torch.polar(torch.ones_like(angles), angles)[:, None, None]

        def rotate(qkv: torch.Tensor) -> None:
            pairs = qkv.view(*qkv.shape[:-1], -1, 2)[:, :2]
            if qkv.dtype == torch.float32:
                torch.view_as_complex(pairs).mul_(turn)
            else:
                pairs.copy_(torch.view_as_real(torch.view_as_complex(pairs.float()).mul_(turn)))

        return rotate
