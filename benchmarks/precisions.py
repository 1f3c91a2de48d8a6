"""bf16 beside float32 on a CPU: forward passes against the peak of each precision, and the whole command.

What is won depends on the CPU: with AMX or AVX512-BF16 it has several times the peak, without them a fraction of it.
"""

import json
from pathlib import Path
from statistics import median
from typing import Any

import end_to_end
from measure import HERE, PYTHON, run

PRECISIONS = ("fp32", "bf16")


def measure(inputs: Path, work: Path, repeats: int, residues: int, proteins: int, threads: int) -> dict[str, Any]:
    """Of each shape and precision, in turns: seconds, residues per second, share of the peak, cosines to float32."""
    import numpy as np

    work.mkdir()
    shapes = {
        "ESM-2 8M": ["forward.py", "esmflow", inputs],
        "650M shape": ["large_model.py", "esmflow", inputs / "proteins.fasta"],
    }
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {(name, own): [] for name in shapes for own in PRECISIONS}
    peaks = dict.fromkeys(PRECISIONS, 0.0)

    def figures(command: list[Any], precision: str, vectors: Path) -> dict[str, Any]:
        script, *arguments = command
        options = ["--threads", str(threads), "--precision", precision, "--vectors", vectors]
        cost = run([PYTHON, HERE / script, *arguments, *options], work / "log")
        return json.loads((work / "log").read_text().splitlines()[-1]) | {"others": cost.others}

    for _ in range(repeats):
        for precision in PRECISIONS:
            peak = figures(["forward.py", "gemm", inputs], precision, work / "none")["peak"]
            peaks[precision] = max(peaks[precision], peak)
            for name, command in shapes.items():
                runs[name, precision].append(figures(command, precision, work / f"{name}.{precision}.npy"))

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
