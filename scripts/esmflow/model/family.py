"""What families of models differ in, and what the trunk asks of each."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from esmflow.model.parts import Norm

#: Turns queries and keys of qkv [total tokens, 3, heads, head_dim] in place.
Rotate = Callable[[torch.Tensor], None]


class Layer(Protocol):
    """A transformer layer; attention itself is the trunk's, between the first step and the second.

    x is the residual stream before the step, float32 [total tokens, embed_dim].
    """

    def qkv(self, x: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values, before their rotation: [total tokens, 3, heads, head_dim]."""

    def add_attended(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """The residual stream with what attention gave, [total tokens, heads, head_dim]."""

    def add_feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """The residual stream with what the feed-forward network makes of it."""


class Family(Protocol):
    """The part of a model that other families have otherwise."""

    @property
    def layers(self) -> Sequence[Layer]:
        """The transformer layers, in order."""

    @property
    def norm_after(self) -> Norm:
        """The LayerNorm after the last layer."""

    def embed(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Layer 0 from the tokens' embedding, both float32 [total tokens, embed_dim].

        positions: the tokens' places in their sequences, int64 [total tokens].
        """

    def rotation(self, positions: torch.Tensor) -> Rotate:
        """What turns queries and keys by their positions."""
