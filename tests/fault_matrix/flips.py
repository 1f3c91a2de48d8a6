"""Single bits that flip in what steps hand each other, their time kept, before a step reads it."""

import os
import random
import shutil
import subprocess
from pathlib import Path

from commands import Outcome, Run, Whole, snakemake
from judge import Figures

#: Who reads a kind of file; None: Snakemake itself.
READERS: dict[str, list[str | None]] = {
    "store/embeddings/*/*/*.parquet": [
        "features.parts",
        "residues.per_tok",
        "likelihoods",
        "export_csv",
        "embed",
        "plan",
    ],
    "results/catalog/*.parquet": ["features.parts", "status", "export_npy", "match_variants"],
    "results/sequences/*.parquet": ["plan", "mask", "export_bio_embeddings"],
    "results/plan/shards/*.parquet": ["embed"],
    "results/plan/jobs/*.json": ["embed"],
    "results/plan/plan.json": [None, "preflight", "report"],
    "results/made_for/**/*.txt": [None],
    "results/receipts/*.json": ["plan", "report"],
    "results/models/*.json": ["plan", "features.parts", "status"],
    "results/m[au]*/**/*.parquet": ["plan", "residues.masked_marginals", "variants"],
    "results/features/**/*.parquet": ["report"],
    "results/status/*.tsv": ["report"],
    "results/likelihoods/*/*.parquet": ["report"],
    "results/residues/**/*.h5": ["report"],
    "results/variants/*.parquet": ["proteingym"],
    "tiny.pt": ["embed"],
}
#: What a command may end with then: done, since the bit tells nothing or its part was made anew; bad data; run again.
ANSWERS = {0, 65, 75}


def flips(figures: Figures, whole: Whole, work: Path, count: int, draw: random.Random) -> None:
    """Flip bits. A command is to tell of that, or to make the same as ever."""
    patterns = list(READERS)
    expected: dict[tuple[str, str], dict[Path, str]] = {}
    for number in figures.tries("flips", count):
        pattern = patterns[number % len(patterns)]
        kind = draw.choice(READERS[pattern])
        path = draw.choice(sorted(path.relative_to(whole.run.root) for path in whole.run.root.glob(pattern)))
        run = _before(whole, work / "flipped", kind, path)
        if kind and (kind, str(path)) not in expected:
            run.do(whole.step(kind))
            expected[kind, str(path)] = run.contents(run.files() - {path})
            shutil.rmtree(run.root)
            run = _before(whole, work / "flipped", kind, path)
        place = _flip(run.root / path, draw)
        outcome = run.do(whole.step(kind)) if kind else _read_by_snakemake(run)
        about = f"{path}, bit in byte {place}, read by {kind or 'Snakemake'}"
        if outcome.traceback:
            figures.add("tracebacks", f"{about}: {outcome.errors[-1500:]}")
        elif outcome.code not in ANSWERS or (outcome.code and not outcome.told):
            figures.add("silent", f"{about}: ends with {outcome.code}: {outcome.errors[-600:]}")
        elif outcome.code or (kind == "plan" and (run.root / "store" / "quarantine").exists()):
            # A plan goes on without the file, and plans what that held.
            figures.add("told")
        elif kind and run.contents(run.files() - {path}) != expected[kind, str(path)]:
            figures.add("wrong", about)
        else:
            figures.add("harmless")
        shutil.rmtree(run.root)


def _before(whole: Whole, target: Path, kind: str | None, path: Path) -> Run:
    """A run in which all is done, but for what a command makes; the file that is to rot is there in any case."""
    made = whole.made[whole.step(kind).name] if kind else set()
    if kind == "embed" and path.parts[0] == "store":
        made = {one for one in made if one.parts[0] != "store"}
    return whole.copy(target, (set(whole.contents) - made) | {path})


def _flip(path: Path, draw: random.Random) -> int:
    """Flip one bit of a file, and keep its time; returns the place of its byte."""
    status, data = path.stat(), bytearray(path.read_bytes())
    place = draw.randrange(len(data))
    data[place] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return place


def _read_by_snakemake(run: Run) -> Outcome:
    """What Snakemake says of a run that is done."""
    command = snakemake("--dry-run", "--rerun-triggers", "mtime", "--", "all")
    done = subprocess.run(command, cwd=run.root, capture_output=True, text=True, check=False)
    return Outcome(done.returncode, done.stdout + done.stderr)
