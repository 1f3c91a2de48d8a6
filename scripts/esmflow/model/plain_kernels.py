"""What comes between matrix products and attention, by PyTorch's own operations, on any device."""

import warnings

import torch
import torch.nn.functional as F

from esmflow.model.parts import LayerNorm


def arrange(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Put the two components of each rotary pair side by side, as a complex number has them.

    Queries and keys are permuted alike, so that their dot products stay what they were.
    """
    order = torch.arange(len(rows), device=rows.device).view(-1, 2, head_dim // 2).transpose(1, 2).flatten()
    return rows[order]


def add_norm(x: torch.Tensor, delta: torch.Tensor, share: float, norm: LayerNorm, dtype: torch.dtype) -> torch.Tensor:
    """As `Kernels` has it."""
    return norm(x.add_(delta, alpha=share)).to(dtype)


def turn(angles: torch.Tensor) -> torch.Tensor:
    """Complex numbers of size one: complex64 [tokens, 1, 1, head_dim / 2]."""
    return torch.polar(torch.ones_like(angles), angles)[:, None, None]


def rotate(qkv: torch.Tensor, turn: torch.Tensor, norm: LayerNorm | None) -> None:
    """One multiplication of complex numbers in place; of those in bf16, of which there are none, in a copy."""
    if norm:
        for place, weight in enumerate(norm.weight):
            components = qkv[:, place].flatten(1)
            components.copy_(F.layer_norm(components.float(), weight.shape, weight, eps=norm.eps))
    pairs = qkv.view(*qkv.shape[:-1], -1, 2)[:, :2]
    if qkv.dtype == torch.bfloat16:
        pairs.copy_(torch.view_as_real(torch.view_as_complex(pairs.float()).mul_(turn)))
        return
    with warnings.catch_warnings():
        # That complex numbers of two fp16 are experimental; they are multiplied as complex64.
        warnings.simplefilter("ignore", UserWarning)
        torch.view_as_complex(pairs).mul_(turn)


def gate(gate_up: torch.Tensor) -> torch.Tensor:
    """As `Kernels` has it."""
    gate, up = gate_up.chunk(2, dim=1)
    return F.silu(gate).mul_(up)
