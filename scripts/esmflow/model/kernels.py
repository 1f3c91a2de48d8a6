"""The choice of what comes between matrix products and attention: kernels of Triton's where they work, or PyTorch's."""

import importlib
import logging

import torch

from esmflow.architecture import Architecture
from esmflow.errors import DeviceError
from esmflow.model import plain_kernels
from esmflow.model.parts import Kernels, LayerNorm

#: From the faster to the one that always works.
NAMES = ("triton", "plain")

log = logging.getLogger(__name__)


def choose_kernels(
    name: str, device: torch.device, dtype: torch.dtype, architecture: Architecture
) -> tuple[str, Kernels]:
    """Those of that name, or for `auto` Triton's if they work on the device, which are tried and checked.

    Triton compiles them for the device when they are first tried, for which it needs a C compiler, and keeps them in
    its cache. Raises DeviceError if those asked for by name do not work.
    """
    if name == "plain" or (name == "auto" and device.type == "cpu"):
        return "plain", plain_kernels
    try:
        kernels: Kernels = importlib.import_module("esmflow.model.triton_kernels")
        check(kernels, device, dtype, architecture)
    except Exception as error:  # Compilers and drivers raise nearly everything.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        if name != "auto":
            raise DeviceError(
                f"kernels of Triton do not work on {device} with {dtype} ({reason}); use 'auto'"
            ) from error
        log.info("kernels of Triton are not usable (%s)", reason)
        return "plain", plain_kernels
    return "triton", kernels


@torch.inference_mode()
def check(kernels: Kernels, device: torch.device, dtype: torch.dtype, architecture: Architecture) -> None:
    """Run each kernel at a model's widths, and compare it with what PyTorch's own operations give in float32.

    Raises ArithmeticError if one differs by more than its precision explains.
    """
    tokens, width, head_dim = 7, architecture.embed_dim, architecture.head_dim
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    x, weight = random(tokens, width, dtype=torch.float32), random(width, dtype=torch.float32)
    for bias in (None, random(width, dtype=torch.float32)):
        norm, delta, sum_ = LayerNorm(weight, bias, architecture.norm_eps), random(tokens, width), x.clone()
        expected = norm(x + 0.5 * delta.float())
        _compare("add_norm", kernels.add_norm(sum_, delta, 0.5, norm, dtype), expected)
        _compare("add_norm", sum_, x + 0.5 * delta.float())
    angles = 100 * random(tokens, head_dim // 2, dtype=torch.float32)
    qk_norm = LayerNorm(random(2, width, dtype=torch.float32), None, architecture.norm_eps)
    for of_queries in (None, qk_norm):
        qkv = random(tokens, 3, architecture.heads, head_dim)
        expected = turned(qkv.float(), angles, of_queries)
        kernels.rotate(qkv, kernels.turn(angles), of_queries)
        _compare("rotate", qkv, expected)
    gate_up = random(tokens, 2 * architecture.ffn_dim)
    gate, up = gate_up.float().chunk(2, dim=1)
    _compare("gate", kernels.gate(gate_up), gate * gate.sigmoid() * up)


def turned(qkv: torch.Tensor, angles: torch.Tensor, norm: LayerNorm | None) -> torch.Tensor:
    """Queries, keys and values after norms and rotation, by the formula, with checkpoints' order of rows: float32."""
    qk, v = qkv[:, :2], qkv[:, 2:]
    if norm:
        centred = (flat := qk.flatten(2)) - flat.mean(-1, keepdim=True)
        scaled = centred * (centred.square().mean(-1, keepdim=True) + norm.eps).rsqrt() * norm.weight
        qk = scaled.view_as(qk)
    first, second = qk.chunk(2, dim=-1)
    cosine, sine = angles.cos()[:, None, None], angles.sin()[:, None, None]
    rotated = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    return torch.cat([rotated, v], dim=1)


def _compare(name: str, actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Raise ArithmeticError unless they are equal but for rounding: bf16 keeps 8 bits, fp16 11, float32 24."""
    tolerance = {torch.bfloat16: 2**-7, torch.float16: 2**-10}.get(actual.dtype, 1e-5)
    actual = actual.float()
    if not torch.allclose(actual, expected, rtol=tolerance, atol=tolerance):
        raise ArithmeticError(f"{name} differs by {(actual - expected).abs().max().item():.3g}")
