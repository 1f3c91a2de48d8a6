"""Attention within each sequence of a pack, by the best kernel that works on the device.

Each kernel takes qkv [total tokens, 3, heads, head_dim], cu_seqlens int32 [sequences + 1] on qkv's device, and the
tokens of each sequence as numbers, and returns [total tokens, heads, head_dim]. Vaswani et al. 2017, arXiv:1706.03762.
"""

import importlib
import logging
from collections.abc import Callable
from itertools import groupby

import torch
import torch.nn.functional as F

from esmflow.errors import DeviceError

Attention = Callable[[torch.Tensor, torch.Tensor, list[int]], torch.Tensor]

log = logging.getLogger(__name__)


def sdpa(qkv: torch.Tensor, cu_seqlens: torch.Tensor, lengths: list[int]) -> torch.Tensor:  # noqa: ARG001
    """PyTorch's scaled_dot_product_attention, on any device; neighbours of equal length go through in one call."""
    result = torch.empty_like(qkv[:, 0])
    start = 0
    for length, run in groupby(lengths):
        count = len(list(run))
        stop = start + count * length
        q, k, v = qkv[start:stop].view(count, length, *qkv.shape[1:]).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        result[start:stop] = attended.reshape(-1, *result.shape[1:])
        start = stop
    return result


def whole_pack(module: str, function: str, seqlens: str = "cu_seqlens_{}", longest: str = "max_seqlen_{}") -> Attention:
    """A library's function (CUDA, 16 bit) that takes a whole pack in one call.

    seqlens, longest: the names of what it takes of queries and of keys; their places differ from version to version.
    Some give the logarithms of the softmax's denominators behind the result.
    """

    def attend(qkv: torch.Tensor, cu_seqlens: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        ranges = {
            name.format(which): value
            for name, value in ((seqlens, cu_seqlens), (longest, max(lengths)))
            for which in "qk"
        }
        attended = getattr(importlib.import_module(module), function)(*qkv.unbind(1), **ranges)
        result: torch.Tensor = attended[0] if isinstance(attended, tuple) else attended
        return result

    return attend


#: From the fastest to the one that always works. FlashAttention 3 (Shah et al. 2024, arXiv:2407.08608) is for Hopper, 4
#: for Hopper and Blackwell, 2 (Dao 2023, arXiv:2307.08691) for all from Ampere on; PyTorch has one from 2.10 on.
KERNELS: dict[str, Attention] = {
    "flash_attn_3": whole_pack("flash_attn_interface", "flash_attn_varlen_func"),
    "flash_attn_4": whole_pack("flash_attn.cute", "flash_attn_varlen_func"),
    "flash_attn": whole_pack("flash_attn", "flash_attn_varlen_func"),
    "torch_varlen": whole_pack("torch.nn.attention.varlen", "varlen_attn", "cu_seq_{}", "max_{}"),
    "sdpa": sdpa,
}


def choose(name: str, device: torch.device, dtype: torch.dtype, heads: int, head_dim: int) -> tuple[str, Attention]:
    """The kernel of that name, or for `auto` the first that works on the device, which is tried and checked.

    Raises DeviceError if a kernel asked for by name does not work.
    """
    if name == "sdpa" or (name == "auto" and device.type == "cpu"):
        return "sdpa", sdpa
    for candidate in KERNELS if name == "auto" else [name]:
        try:
            _try(KERNELS[candidate], device, dtype, heads, head_dim)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            if name != "auto":
                raise DeviceError(
                    f"attention {name} does not work on {device} with {dtype} ({reason}); use 'attention: auto'"
                ) from error
            log.info("attention %s is not usable (%s)", candidate, reason)
        else:
            return candidate, KERNELS[candidate]
    raise DeviceError(f"no attention kernel works on {device}")


@torch.inference_mode()
def _try(kernel: Attention, device: torch.device, dtype: torch.dtype, heads: int, head_dim: int) -> None:
    """Run a kernel on a small pack and compare it with the plain one."""
    lengths = [5, 3, 7]
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(sum(lengths), 3, heads, head_dim, generator=generator).to(device, dtype)
    cu_seqlens = torch.tensor([0, 5, 8, 15], dtype=torch.int32, device=device)
    attended, plain = kernel(qkv, cu_seqlens, lengths).float(), sdpa(qkv.float(), cu_seqlens, lengths)
    if not torch.allclose(attended, plain, atol=0.05):
        raise ArithmeticError(f"differs from the plain kernel by {(attended - plain).abs().max().item():.3g}")
