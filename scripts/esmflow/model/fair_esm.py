"""The transformer layer that ESM-1b, ESM-1v and ESM-2 have in common (`esm.modules.TransformerLayer`)."""

import torch

from esmflow.architecture import Architecture
from esmflow.model.parts import Tensors, dense


class FairEsmLayer:
    """Attention and a feed-forward network with a GELU, each behind a LayerNorm of its own."""

    qk_norm = None

    def __init__(self, tensors: Tensors, name: str, architecture: Architecture, *, rotary: bool) -> None:
        self._heads = architecture.heads
        self.attention_norm = tensors.norm(f"{name}.self_attn_layer_norm")
        weights, biases = (
            [tensors.factor(f"{name}.self_attn.{which}_proj.{part}") for which in "qkv"] for part in ("weight", "bias")
        )
        if rotary:
            for rows in (weights, biases):
                rows[:2] = [tensors.kernels.arrange(part, architecture.head_dim) for part in rows[:2]]
        self._qkv = dense((torch.cat(weights), torch.cat(biases)))
        self._out = dense(tensors.linear(f"{name}.self_attn.out_proj"))
        self.ffn_norm = tensors.norm(f"{name}.final_layer_norm")
        self._fc1_gelu = dense(tensors.linear(f"{name}.fc1"), gelu=True)
        self._fc2 = dense(tensors.linear(f"{name}.fc2"))

    def qkv(self, normed: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values, before their rotation: [total tokens, 3, heads, head_dim]."""
        return self._qkv(normed).view(len(normed), 3, self._heads, -1)

    def out(self, attended: torch.Tensor) -> torch.Tensor:
        """From what attention gave, [total tokens, heads, head_dim], to [total tokens, embed_dim]."""
        return self._out(attended.flatten(1))

    def feed_forward(self, normed: torch.Tensor) -> torch.Tensor:
        """What the feed-forward network makes of [total tokens, embed_dim]."""
        return self._fc2(self._fc1_gelu(normed))


def fair_esm_layers(tensors: Tensors, architecture: Architecture, *, rotary: bool) -> list[FairEsmLayer]:
    """All layers of a model, in order. rotary: whether queries and keys are turned by their positions."""
    names = (f"layers.{number}" for number in range(architecture.layers))
    return [FairEsmLayer(tensors, name, architecture, rotary=rotary) for name in names]
