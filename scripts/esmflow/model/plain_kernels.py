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
    """One multiplication of complex numbers, in place; after a norm, and in bf16, which has none, from float32."""
    pairs = qkv.view(*qkv.shape[:-1], -1, 2)[:, :2]
    with warnings.catch_warnings():
        # That complex numbers of two fp16 are experimental; they are multiplied as complex64.
        warnings.simplefilter("ignore", UserWarning)
        if norm:
            for place, weight in enumerate(norm.weight):
                normed = F.layer_norm(qkv[:, place].flatten(1).float(), weight.shape, weight, eps=norm.eps)
                _multiply(normed.view(pairs[:, place].shape), turn[:, 0], pairs[:, place])
        elif qkv.dtype == torch.bfloat16:
            _multiply(pairs.float(), turn, pairs)
        else:
            torch.view_as_complex(pairs).mul_(turn)


def _multiply(pairs: torch.Tensor, turn: torch.Tensor, target: torch.Tensor) -> None:
    """Put the products of pairs in float32 where the target is."""
    numbers = torch.view_as_complex(pairs)
    if target.dtype == torch.bfloat16:
        target.copy_(torch.view_as_real(numbers.mul_(turn)))
    else:
        torch.mul(numbers, turn, out=torch.view_as_complex(target))


def gate(gate_up: torch.Tensor) -> torch.Tensor:
    """As `Kernels` has it."""
    gate, up = gate_up.chunk(2, dim=1)
    return F.silu(gate).mul_(up)
