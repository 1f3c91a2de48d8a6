"""What comes between matrix products and attention, by kernels of Triton's that go through memory once.

Statistics, angles and sums are float32 whatever the tensors are. Each kernel is an operator of PyTorch's, so that it
can be traced. Tillet et al. 2019, doi:10.1145/3315508.3329973.
"""

import torch
import triton
import triton.language as tl

from esmflow.model.parts import LayerNorm

#: Components of a feed-forward network that a program of `gate` has.
_COLUMNS = 1024


def arrange(rows: torch.Tensor, head_dim: int) -> torch.Tensor:  # noqa: ARG001
    """Checkpoints' own order."""
    return rows


def add_norm(x: torch.Tensor, delta: torch.Tensor, share: float, norm: LayerNorm, dtype: torch.dtype) -> torch.Tensor:
    """As `Kernels` has it."""
    return _add_norm(x, delta, share, norm.weight, norm.bias, norm.eps, dtype)


def turn(angles: torch.Tensor) -> torch.Tensor:
    """Cosines and sines: float32 [tokens, 2, head_dim / 2]."""
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def rotate(qkv: torch.Tensor, turn: torch.Tensor, norm: LayerNorm | None) -> None:
    """As `Kernels` has it."""
    _rotate(qkv, turn, norm.weight if norm else None, norm.eps if norm else 0.0)


def gate(gate_up: torch.Tensor) -> torch.Tensor:
    """As `Kernels` has it."""
    return _gate(gate_up)


@triton.jit
def add_norm_kernel(
    x,
    delta,
    weight,
    bias,
    normed,
    share,
    eps,
    width: tl.constexpr,
    block: tl.constexpr,
):
    """A program for each token."""
    row = tl.program_id(0).to(tl.int64) * width
    column = tl.arange(0, block)
    inside = column < width
    value = tl.load(x + row + column, mask=inside, other=0.0)
    value += share * tl.load(delta + row + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(x + row + column, value, mask=inside)
    centred = tl.where(inside, value - tl.sum(value, 0) / width, 0.0)
    scaled = centred * tl.rsqrt(tl.sum(centred * centred, 0) / width + eps)
    scaled *= tl.load(weight + column, mask=inside, other=0.0)
    if bias is not None:
        scaled += tl.load(bias + column, mask=inside, other=0.0)
    tl.store(normed + row + column, scaled.to(normed.dtype.element_ty), mask=inside)


@triton.jit
def rotate_kernel(
    qkv,
    turn,
    weight,
    eps,
    width: tl.constexpr,
    half: tl.constexpr,
    block: tl.constexpr,
):
    """A program for the queries, and one for the keys, of each token."""
    token, which = tl.program_id(0).to(tl.int64), tl.program_id(1)
    pair = tl.arange(0, block)
    inside = pair < width // 2
    column = which * width + pair // half * (2 * half) + pair % half
    place = qkv + token * (3 * width) + column
    first = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(place + half, mask=inside, other=0.0).to(tl.float32)
    if weight is not None:
        mean = (tl.sum(first, 0) + tl.sum(second, 0)) / width
        first, second = tl.where(inside, first - mean, 0.0), tl.where(inside, second - mean, 0.0)
        scale = tl.rsqrt((tl.sum(first * first, 0) + tl.sum(second * second, 0)) / width + eps)
        first *= scale * tl.load(weight + column, mask=inside, other=0.0)
        second *= scale * tl.load(weight + column + half, mask=inside, other=0.0)
    angle = turn + token * (2 * half) + pair % half
    cosine, sine = tl.load(angle, mask=inside, other=0.0), tl.load(angle + half, mask=inside, other=0.0)
    tl.store(place, (first * cosine - second * sine).to(qkv.dtype.element_ty), mask=inside)
    tl.store(place + half, (second * cosine + first * sine).to(qkv.dtype.element_ty), mask=inside)


@triton.jit
def gate_kernel(
    gate_up,
    gated,
    width: tl.constexpr,
    block: tl.constexpr,
):
    """A program for so many columns of each token."""
    token, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * block + tl.arange(0, block)
    inside = column < width
    place = gate_up + token * (2 * width) + column
    gate = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(place + width, mask=inside, other=0.0).to(tl.float32)
    value = gate * tl.sigmoid(gate) * up
    tl.store(gated + token * width + column, value.to(gated.dtype.element_ty), mask=inside)


@torch.library.custom_op("esmflow::add_norm", mutates_args=("x",))
def _add_norm(
    x: torch.Tensor,
    delta: torch.Tensor,
    share: float,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> torch.Tensor:
    normed = torch.empty_like(x, dtype=dtype)
    width = x.shape[1]
    block = triton.next_power_of_2(width)
    add_norm_kernel[(len(x),)](x, delta, weight, bias, normed, share, eps, width, block, num_warps=warps(block))
    return normed


@torch.library.custom_op("esmflow::rotate", mutates_args=("qkv",))
def _rotate(qkv: torch.Tensor, turn: torch.Tensor, weight: torch.Tensor | None, eps: float) -> None:
    tokens, _, heads, head_dim = qkv.shape
    block = triton.next_power_of_2(heads * head_dim // 2)
    rotate_kernel[(tokens, 2)](
        qkv, turn, weight, eps, heads * head_dim, head_dim // 2, block, num_warps=warps(2 * block)
    )


@torch.library.custom_op("esmflow::gate", mutates_args=())
def _gate(gate_up: torch.Tensor) -> torch.Tensor:
    tokens, width = len(gate_up), gate_up.shape[1] // 2
    gated = gate_up.new_empty(tokens, width)
    gate_kernel[(tokens, triton.cdiv(width, _COLUMNS))](gate_up, gated, width, _COLUMNS)
    return gated


@_add_norm.register_fake
def _(x, delta, share, weight, bias, eps, dtype):  # noqa: ARG001
    return torch.empty_like(x, dtype=dtype)


@_rotate.register_fake
def _(qkv, turn, weight, eps):  # noqa: ARG001
    return None


@_gate.register_fake
def _(gate_up):
    return gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)


def warps(components: int) -> int:
    """Warps of a program that has so many components of a token: 16 components a thread."""
    return min(max(components // 512, 1), 16)
