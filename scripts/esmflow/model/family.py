"""What families of models differ in, and what the trunk asks of each."""

from collections.abc import Sequence
from typing import Protocol

import torch

from esmflow.model.parts import LayerNorm


class Layer(Protocol):
    """A transformer layer, in steps.

    The trunk has attention itself, and what lies between the steps: what a step gives, times the family's `share`, is
    added to the residual stream, and the sum's norm goes into the next.
    """

    @property
    def attention_norm(self) -> LayerNorm:
        """Of what goes into `qkv`."""

    @property
    def qk_norm(self) -> LayerNorm | None:
        """Of queries and of keys, before their rotation."""

    @property
    def ffn_norm(self) -> LayerNorm:
        """Of what goes into `feed_forward`."""

    def qkv(self, normed: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values, before norms of their own and rotation: [total tokens, 3, heads, head_dim]."""

    def out(self, attended: torch.Tensor) -> torch.Tensor:
        """From what attention gave, [total tokens, heads, head_dim], to [total tokens, embed_dim]."""

    def feed_forward(self, normed: torch.Tensor) -> torch.Tensor:
        """What the feed-forward network makes of [total tokens, embed_dim]."""


class Family(Protocol):
    """The part of a model that other families have otherwise."""

    @property
    def layers(self) -> Sequence[Layer]:
        """The transformer layers, in order."""

    @property
    def share(self) -> float:
        """The part of what a layer's steps give that is added to the residual stream."""

    @property
    def norm_after(self) -> LayerNorm:
        """The LayerNorm after the last layer."""

    def embed(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Layer 0 from the tokens' embedding, both float32 [total tokens, embed_dim].

        positions: the tokens' places in their sequences, int64 [total tokens].
        """

    def angles(self, positions: torch.Tensor) -> torch.Tensor | None:
        """By which pairs of components of queries and keys are turned, float32 [total tokens, head_dim / 2], if so."""
