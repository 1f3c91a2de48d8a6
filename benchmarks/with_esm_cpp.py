"""esm-cpp (C++, packed batches, ESM-2 alone) beside the engine: the 8M in float32, weights loaded, warmed up.

As a command, in an environment of esm-cpp's own, which `measure` makes: one run of esm-cpp on the proteins of a FASTA
file; prints its figures as JSON. It computes the LM head as well, which it cannot leave out.
"""

import argparse
import json
import os
import subprocess
import time
import venv
from pathlib import Path
from statistics import median
from typing import Any

from measure import BUILD, HERE, MAX_RESIDUES, PYTHON, figures

VERSION = "0.2.1"
#: Of the proteins, one in so many: on a CPU without AVX-512 esm-cpp takes minutes for these.
EVERY = 10


def measure(inputs: Path, work: Path, repeats: int, threads: int) -> dict[str, Any]:
    """Both in turns on the same proteins, and how far their vectors of the shortest one are from each other."""
    import numpy as np

    theirs = BUILD / f"esm-cpp-{VERSION}" / "bin" / "python"
    if not theirs.exists():
        venv.create(theirs.parents[1], with_pip=True)
        subprocess.run([theirs, "-m", "pip", "install", "--quiet", f"esm-cpp=={VERSION}"], check=True)
    work.mkdir()
    lines = (inputs / "proteins.fasta").read_text().splitlines()
    few = [line for first in range(0, len(lines), 2 * EVERY) for line in lines[first : first + 2]]
    (work / "proteins.fasta").write_text("\n".join(few) + "\n")
    (work / "descriptor.json").symlink_to(inputs / "descriptor.json")
    forward = [PYTHON, HERE / "forward.py", "esmflow", work]
    peer = [theirs, Path(__file__), work / "proteins.fasta", inputs / "hugging_face_lm.safetensors"]
    name = f"esm-cpp {VERSION}"
    runs: dict[str, list[dict[str, Any]]] = {"esmflow": [], name: []}
    for _ in range(repeats):
        for whose, command in (("esmflow", forward), (name, peer)):
            log, vectors = work / f"{whose}.log", work / f"{whose}.npy"
            runs[whose].append(figures([*command, "--threads", str(threads), "--vectors", vectors], log))
    lengths = [min(len(line), MAX_RESIDUES) for line in few[1::2]]
    contenders = {
        whose: {
            "seconds": [round(own["seconds"][whose], 3) for own in of_whom],
            "residues_per_second": round(sum(lengths) / median(own["seconds"][whose] for own in of_whom), 1),
            "others": [own["others"] for own in of_whom],
        }
        for whose, of_whom in runs.items()
    }
    ours = np.load(work / "esmflow.npy")[lengths.index(min(lengths))]
    difference = np.linalg.norm(np.load(work / f"{name}.npy") - ours) / np.linalg.norm(ours)
    return {
        "proteins": len(lengths),
        "residues": sum(lengths),
        "instructions": runs[name][0]["instructions"],
        "contenders": contenders,
        "relative_difference": float(f"{difference:.3g}"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fasta", type=Path, help="proteins, each on one line")
    parser.add_argument("weights", type=Path, help="safetensors, in Hugging Face's layout with an LM head")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--vectors", type=Path, required=True, help="where to save the mean of the shortest protein")
    options = parser.parse_args()
    # Read when it is imported.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import esm_cpp
    import numpy as np

    model = esm_cpp.Model.load_from_safetensors(str(options.weights))
    encode = esm_cpp.Tokenizer().encode
    tokens = [encode(line[:MAX_RESIDUES]) for line in options.fasta.read_text().split("\n")[1::2]]
    shortest = min(tokens, key=len)
    _, layers = model.forward_with_hidden_states(shortest)
    np.save(options.vectors, layers[-1][1:-1].mean(axis=0))
    start = time.perf_counter()
    model.forward_scheduled(tokens)
    seconds = {f"esm-cpp {VERSION}": time.perf_counter() - start}
    print(json.dumps({"seconds": seconds, "instructions": esm_cpp.current_isa()}))


if __name__ == "__main__":
    main()
