"""Compile Triton's kernels for GPUs that this machine need not have; tell what NVIDIA's tool says of each.

For a process of its own, since the interpreter of Triton's changes the language for all of one.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import triton
from esmflow.model import triton_kernels
from triton.backends.compiler import GPUTarget

VECTOR = "*fp32"
#: Compute capability, embed_dim, components of half a head, and numbers: 15B, and 35M's odd widths.
CASES = [(80, 5120, 64, "bf16"), (89, 480, 12, "fp16"), (90, 480, 12, "fp16"), (100, 5120, 64, "bf16")]
if "FULL_SIZE" in os.environ:
    CASES += [(89, 5120, 64, "bf16"), (90, 5120, 64, "bf16")]


def resources(kernel: object, capability: int, warps: int, types: dict[str, object]) -> str:
    """Registers, stack and local memory of a kernel. types: of each argument, or the value of one that is fixed."""
    fixed = {name: value for name, value in types.items() if not isinstance(value, str)}
    signature = {name: "constexpr" if name in fixed else value for name, value in types.items()}
    # As PyTorch's allocator gives them.
    aligned = {
        (number,): [["tt.divisibility", 16]] for number, value in enumerate(types.values()) if str(value)[0] == "*"
    }
    source = triton.compiler.ASTSource(kernel, signature, fixed, aligned)
    target = GPUTarget("cuda", capability, 32)
    binary = triton.compile(source, target=target, options={"num_warps": warps}).asm["cubin"]
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        told = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    return told.stdout.splitlines()[-1].strip()


def main() -> None:
    for capability, width, half, number in CASES:
        rows, block = f"*{number}", triton.next_power_of_2(width)
        warps = triton_kernels.warps(block)
        add_norm = {"x": VECTOR, "delta": rows, "weight": VECTOR, "bias": VECTOR, "normed": rows}
        add_norm |= {"share": "fp32", "eps": "fp32", "width": width, "block": block}
        rotate = {"qkv": rows, "turn": VECTOR, "weight": None, "eps": "fp32"}
        rotate |= {"width": width, "half": half, "block": block // 2}
        gate = {"gate_up": rows, "gated": rows, "width": 4 * width, "block": 1024}
        for name, kernel, count, types in (
            ("add_norm", triton_kernels.add_norm_kernel, warps, add_norm),
            ("rotate", triton_kernels.rotate_kernel, warps, rotate),
            ("rotate after a norm", triton_kernels.rotate_kernel, warps, rotate | {"weight": VECTOR}),
            ("gate", triton_kernels.gate_kernel, 4, gate),
        ):
            print(f"{name} sm_{capability} {width}: {resources(kernel, capability, count, types)}", flush=True)


if __name__ == "__main__":
    main()
