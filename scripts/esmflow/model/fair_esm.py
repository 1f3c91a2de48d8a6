"""The transformer layer that ESM-1b, ESM-1v and ESM-2 have in common (`esm.modules.TransformerLayer`)."""

from collections.abc import Callable

import torch

from esmflow.architecture import Architecture
from esmflow.model.parts import Tensors, dense


class FairEsmLayer:
    """Attention and a feed-forward network with a GELU, each behind a LayerNorm of its own.

    arrange: brings the rows of queries' and keys' weights and biases into the order that the family's rotation takes.
    """

    def __init__(
        self, tensors: Tensors, name: str, heads: int, arrange: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        self._heads, self._dtype = heads, tensors.dtype
        self._attention_norm = tensors.norm(f"{name}.self_attn_layer_norm")
        weights, biases = (
            [tensors.factor(f"{name}.self_attn.{which}_proj.{part}") for which in "qkv"] for part in ("weight", "bias")
        )
        weight, bias = (torch.cat([arrange(q), arrange(k), v]) for q, k, v in (weights, biases))
        self._qkv = dense((weight, bias))
        self._out = dense(tensors.linear(f"{name}.self_attn.out_proj"))
        self._ffn_norm = tensors.norm(f"{name}.final_layer_norm")
        self._fc1_gelu = dense(tensors.linear(f"{name}.fc1"), gelu=True)
        self._fc2 = dense(tensors.linear(f"{name}.fc2"))

    def qkv(self, x: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values, before their rotation: [total tokens, 3, heads, head_dim]."""
        qkv = self._qkv(self._attention_norm(x).to(self._dtype))
        return qkv.view(len(x), 3, self._heads, -1)

    def add_attended(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """The residual stream with what attention gave, [total tokens, heads, head_dim]."""
        return x + self._out(attended.flatten(1))

    def add_feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """The residual stream with what the feed-forward network makes of it."""
        return x + self._fc2(self._fc1_gelu(self._ffn_norm(x).to(self._dtype)))


def fair_esm_layers(
    tensors: Tensors, architecture: Architecture, arrange: Callable[[torch.Tensor], torch.Tensor] = lambda rows: rows
) -> list[FairEsmLayer]:
    """All layers of a model, in order."""
    names = (f"layers.{number}" for number in range(architecture.layers))
    return [FairEsmLayer(tensors, name, architecture.heads, arrange) for name in names]
