"""Masked marginals by esmflow and by fair-esm's module, of the same proteins with the same random weights, in one run.

    .venv/bin/python benchmarks/marginals.py                               the shape of ESM-2 8M
    .venv/bin/python benchmarks/marginals.py --shape 650M --proteins 3 --positions 2 --rounds 1

- esmflow: the masked copies as the worker has them, through esmflow.engine.engine.Engine
- fair_esm: batches of masked copies through fair-esm's ESM2 module, padded where their lengths differ, for each of some
  budgets of tokens, of which the fastest counts
Of each protein some positions are masked, spread over it: each costs a pass, so that rates are those of all positions.
The contenders take turns; the median round of each counts. Prints the figures as JSON and adds them to
benchmarks/results/marginals.json.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import esm
import numpy as np
import torch
from measure import HERE, ROOT, cpu_times

sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts")]

from esmflow.alphabet import AMINO_ACIDS  # noqa: E402
from esmflow.engine.engine import Engine  # noqa: E402
from esmflow.masking import masked_copies  # noqa: E402
from esmflow.model.trunk import Esm  # noqa: E402
from esmflow.model.weights import Checkpoint  # noqa: E402
from esmflow.representation import Output  # noqa: E402
from esmflow.treatment import MASKED, WHOLE  # noqa: E402
from random_weights import SHAPES, checkpoint, proteins, uniprot_like_lengths  # noqa: E402

#: A protein and the positions that are masked in it.
Work = list[tuple[bytes, list[int]]]
Contender = Callable[[Work], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["8M", "650M"], default="8M")
    parser.add_argument("--proteins", type=int, default=20)
    parser.add_argument("--positions", type=int, default=10, help="masked in each protein")
    parser.add_argument(
        "--budgets", type=int, nargs="+", default=[512, 1024, 4096], help="tokens of fair-esm's batches"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    weights = checkpoint(SHAPES[options.shape], torch.device("cpu"))
    sequences = proteins(uniprot_like_lengths(options.proteins))
    work = [(p, np.unique(np.linspace(0, len(p) - 1, options.positions).astype(int)).tolist()) for p in sequences]
    contenders = {"esmflow": esmflow(weights, options.threads)}
    contenders |= {f"fair_esm_{budget}": fair_esm(weights, budget) for budget in options.budgets}
    shortest = min(work, key=lambda task: len(task[0]))
    values = {name: contender([shortest]) for name, contender in contenders.items()}
    rounds: dict[str, list[float]] = {name: [] for name in contenders}
    busy, total = cpu_times()
    began = time.process_time()
    for _ in range(options.rounds):
        for name, contender in contenders.items():
            start = time.perf_counter()
            values[name] = contender(work)
            rounds[name].append(time.perf_counter() - start)
    (after_busy, after_total), spent = cpu_times(), time.process_time() - began
    seconds = {name: round(statistics.median(times), 2) for name, times in rounds.items()}
    best = min((name for name in seconds if name != "esmflow"), key=seconds.__getitem__)
    record = {
        "shape": options.shape,
        "proteins": len(work),
        "masked_copies": sum(len(positions) for _, positions in work),
        "residues_in_copies": sum(len(p) * len(positions) for p, positions in work),
        "threads": options.threads,
        "rounds": options.rounds,
        "seconds": seconds,
        "times_as_fast": round(seconds[best] / seconds["esmflow"], 2),
        "largest_difference_of_log_p": float(np.abs(values["esmflow"] - values[best]).max()),
        "share_of_others": round(max(after_busy - busy - spent, 0) / max(after_total - total, 1e-9), 3),
    }
    print(json.dumps(record, indent=1))
    target = HERE / "results" / "marginals.json"
    records = json.loads(target.read_text()) if target.exists() else {}
    target.write_text(json.dumps(records | {options.shape: record}, indent=1) + "\n")


def esmflow(weights: Checkpoint, threads: int) -> Contender:
    engine = Engine(Esm(weights, torch.device("cpu")), threads=threads)
    output = Output(weights.architecture.layers, "masked")

    def run(work: Work) -> np.ndarray:
        copies = [copy for protein, positions in work for copy in masked_copies(protein, WHOLE, positions)]
        return np.array(engine.embed(copies, [output], MASKED).values[output])

    return run


def fair_esm(weights: Checkpoint, budget: int) -> Contender:
    shape, alphabet = weights.architecture, esm.Alphabet.from_architecture("ESM-1b")
    model = esm.ESM2(shape.layers, shape.embed_dim, shape.heads, alphabet)
    model.load_state_dict(weights.tensors, assign=True)
    model.eval()
    convert = alphabet.get_batch_converter()
    letters = [alphabet.get_idx(letter) for letter in AMINO_ACIDS]

    @torch.no_grad()
    def run(work: Work) -> np.ndarray:
        copies = [(protein.decode(), position) for protein, positions in work for position in positions]
        values = np.empty((len(copies), len(letters)), np.float32)
        for rows in batches([len(protein) + 2 for protein, _ in copies], budget):
            _, _, tokens = convert([("", copies[row][0]) for row in rows])
            places = torch.tensor([copies[row][1] + 1 for row in rows])
            tokens[torch.arange(len(rows)), places] = alphabet.mask_idx
            log_p = torch.log_softmax(model(tokens)["logits"], dim=-1)
            values[rows] = log_p[torch.arange(len(rows)), places][:, letters].numpy()
        return values

    return run


def batches(tokens: Sequence[int], budget: int) -> list[list[int]]:
    """Rows by length, in batches that have so many tokens at most once they are padded."""
    result: list[list[int]] = [[]]
    for row in sorted(range(len(tokens)), key=tokens.__getitem__):
        if result[-1] and (len(result[-1]) + 1) * tokens[row] > budget:
            result.append([])
        result[-1].append(row)
    return result


if __name__ == "__main__":
    main()
