"""Rotary positions (Su et al. 2021, arXiv:2104.09864), as ESM-2 and ESM-C have them."""

import torch


def frequencies(head_dim: int, device: torch.device) -> torch.Tensor:
    """The inverse frequencies with the base 10,000: float32 [head_dim / 2]."""
    exponents = torch.arange(0, head_dim, 2, device=device).float() / head_dim
    return 1.0 / (10000**exponents)


class Rotary:
    """Tokens alone make the embedding; queries and keys are turned by their positions."""

    def __init__(self, inverse_frequencies: torch.Tensor) -> None:
        self._inverse_frequencies = inverse_frequencies

    def embed(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Layer 0 is the tokens' embedding: float32 [total tokens, embed_dim]."""
        return x

    def angles(self, positions: torch.Tensor) -> torch.Tensor:
        """By which each pair of components is turned: float32 [total tokens, head_dim / 2]."""
        return positions.float()[:, None] * self._inverse_frequencies
