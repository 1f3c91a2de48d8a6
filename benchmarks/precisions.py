"""bf16 beside float32 on a CPU: forward passes against the peak of each precision, and the whole command.

What is won depends on the CPU: with AMX or AVX512-BF16 it has several times the peak, without them a fraction of it.
"""

from pathlib import Path
from statistics import median
from typing import Any

import end_to_end
from measure import HERE, PYTHON, figures

PRECISIONS = ("fp32", "bf16")


def measure(inputs: Path, work: Path, repeats: int, residues: int, proteins: int, threads: int) -> dict[str, Any]:
    """Of each shape and precision, in turns: seconds, residues per second, share of the peak, cosines to float32."""
    import numpy as np

    work.mkdir()
    shapes = {
        "ESM-2 8M": [PYTHON, HERE / "forward.py", "esmflow", inputs],
        "650M shape": [PYTHON, HERE / "large_model.py", "esmflow", inputs / "proteins.fasta"],
    }
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {(name, own): [] for name in shapes for own in PRECISIONS}
    peaks = dict.fromkeys(PRECISIONS, 0.0)

    for _ in range(repeats):
        for precision in PRECISIONS:
            options = ["--threads", str(threads), "--precision", precision]
            peak = figures([PYTHON, HERE / "forward.py", "gemm", inputs, *options], work / "log")["peak"]
            peaks[precision] = max(peaks[precision], peak)
            for name, command in shapes.items():
                vectors = work / f"{name}.{precision}.npy"
                runs[name, precision].append(figures([*command, *options, "--vectors", vectors], work / "log"))

    result: dict[str, Any] = {"gemm_peak_flops_per_second": {name: round(peak) for name, peak in peaks.items()}}
    for name in shapes:
        exact, rounded = (np.load(work / f"{name}.{precision}.npy").astype(np.float64) for precision in PRECISIONS)
        norms = np.linalg.norm(exact, axis=1) * np.linalg.norm(rounded, axis=1)
        own = {precision: _summary(runs[name, precision], peaks[precision]) for precision in PRECISIONS}
        result[name] = {"precisions": own, "least_cosine": float(((exact * rounded).sum(1) / norms).min())}
    contenders = end_to_end.measure(inputs, work, repeats, residues, proteins, PRECISIONS)
    return result | {"end_to_end": contenders}


def _summary(runs: list[dict[str, Any]], peak: float) -> dict[str, Any]:
    # forward.py has the seconds of each of its contenders.
    seconds = [own["seconds"]["esmflow"] if isinstance(own["seconds"], dict) else own["seconds"] for own in runs]
    return {
        "seconds": [round(value, 3) for value in seconds],
        "flops_per_second": round(runs[0]["flops"] / median(seconds)),
        "share_of_gemm_peak": round(runs[0]["flops"] / median(seconds) / peak, 4),
        "others": [own["others"] for own in runs],
    }
