"""What families of models differ in, and what the trunk asks of each."""

from collections.abc import Callable
from typing import Protocol

import torch

from esmflow.model.parts import WeightAndBias

#: Turns queries and keys of qkv [total tokens, 3, heads, head_dim] in place.
Rotate = Callable[[torch.Tensor], None]


class Family(Protocol):
    """The part of a model that other families have otherwise."""

    def embed(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Layer 0, float32 [total tokens, embed_dim], from token numbers and places in sequences, int64 [tokens]."""

    def arrange(self, parameters: WeightAndBias) -> WeightAndBias:
        """Weight and bias of queries, or of keys, with their rows as `rotation` has them."""

    def rotation(self, positions: torch.Tensor) -> Rotate:
        """What turns queries and keys by their positions."""
