"""Kills, flipped bits and failing calls to the system, drawn at random, against every command of a small run.

By hand at full size: python tests/fault_matrix.py --kills 200 --flips 300 --calls 400 [--seed N]
It prints what was tried and what came of it. Nothing may be lost, doubled, wrong or left, nor end in a traceback.
"""

import argparse
import ctypes
import errno
import hashlib
import importlib
import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
ERRORS = {"read": (errno.EIO,)}
WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
KINDS = ("create", "write", "fsync", "truncate", "rename", "mkdir", "read")
#: Where each command writes.
MADE = {
    "ingest": ["results/catalog", "results/sequences"],
    "fetch_model": ["results/models"],
    "plan": ["results/plan"],
    "embed": ["store", "results/receipts"],
    "features": ["results/features/a/m/layer3.mean.parquet"],
    "parts": ["results/features/a/m/x.parts"],
    "residues": ["results/residues"],
    "status": ["results/status"],
    "csv": ["results/exports/e.csv.gz"],
    "uniprot_h5": ["results/exports/e.h5"],
    "anndata": ["results/exports/e.h5ad"],
    "fair_esm_pt": ["results/exports/pt"],
}
#: What a command may end with where something stopped it: bad data, cannot write, run again.
TOLD = {65, 69, 73, 75}
SPEC = {"layers": [-1], "representations": ["mean", "per_tok"], "long_sequences": "truncate", "max_length": 60}
SPEC |= {"window_overlap": 0, "precision": "fp32", "weights": "tiny.pt"}


@dataclass
class Figures:
    """What was tried, and what came of it."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    """Those that should not have been, in a line each."""

    def add(self, name: str, about: str = "") -> None:
        self.counts[name] += 1
        if about:
            self.faults.append(f"{name}: {about}")
            print(self.faults[-1], file=sys.stderr, flush=True)


class Run:
    """A small run in a directory: what each step's command is, and what it makes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def steps(self) -> dict[str, list[str]]:
        """Every command with its arguments, in their order."""
        places = ["--catalog=results/catalog/a.parquet", "--descriptor=results/models/m.json", "--store=store"]
        table = [*places, "--model", "m", "--spec"]
        spec = {name: json.dumps(SPEC | {"representations": [name]}) for name in ("mean", "per_tok")}
        models = json.dumps({"m": SPEC})
        ingest = ["--sample", "a", "--catalog=results/catalog/a.parquet", "--sequences=results/sequences/a.parquet"]
        fetch = ["--model", "m", "--weights=tiny.pt", "--directory=store/weights", "--descriptor=results/models/m.json"]
        plan = ["--results=results", "--samples=samples.tsv", "--models", models, "--store=store"]
        steps = {
            "ingest": ["ingest.py", *ingest, "--", "a.fasta"],
            "fetch_model": ["fetch_model.py", *fetch],
            "plan": ["plan.py", *plan, "--target-minutes", "1e-6", "--max-jobs", "1", "--gpus-per-job", "0"],
            "embed": ["embed.py", "--job=JOB", "--store=store", "--receipt=RECEIPT", "--heartbeats=results/heartbeats"],
            "features": ["features.py", *table, spec["mean"], "--table=results/features/a/m/layer3.mean.parquet"],
            "parts": ["features.py", *table, spec["mean"], "--table=results/features/a/m/x.parts", "--part-mb", "0.01"],
            "residues": ["residues.py", *table, spec["per_tok"], "--file=results/residues/a/m/layer3.per_tok.h5"],
            "status": ["status.py", "--results=results", "--sample", "a", "--models", models, "--store=store"],
        }
        for name, target in (("csv", "e.csv.gz"), ("uniprot_h5", "e.h5"), ("anndata", "e.h5ad"), ("fair_esm_pt", "pt")):
            options = ["export.py", *table, spec["mean"], "--format", name]
            steps[name] = [*options, "--", f"results/exports/{target}"]
        return steps

    def arguments(self, step: str) -> list[str]:
        """A step's command as it is now that the steps before it are done."""
        script, *arguments = self.steps()[step]
        if step == "embed":
            [job] = (self.root / "results/plan/jobs").glob("*.json")
            places = {"JOB": f"results/plan/jobs/{job.name}", "RECEIPT": f"results/receipts/{job.name}"}
            for name, place in places.items():
                arguments = [argument.replace(name, place) for argument in arguments]
        return [str(SCRIPTS / script), *arguments]

    def start(self, step: str, fault: tuple[str, int, int] | None = None) -> "Child":
        """Begin a step, in a process group of its own, which may meet a fault: call, which of these, error."""
        script, *arguments = self.arguments(step)
        child = Child(os.fork(), Path(f"{self.root}.out"), Path(f"{self.root}.err"))
        if child.pid:
            return child
        code = 1
        try:
            os.setsid()
            os.chdir(self.root)
            for number, path in ((1, child.out), (2, child.err)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.argv = [script, *arguments]
            library = ctypes.CDLL(os.environ["LD_PRELOAD"])
            library.fault_calls.restype = ctypes.c_long
            if fault:
                library.fault_arm(fault[0].encode(), str(self.root).encode(), ctypes.c_long(fault[1]), fault[2])
            try:
                runpy.run_path(script, run_name="__main__")
                code = 0
            except SystemExit as ended:
                code = int(ended.code or 0)
            finally:
                print("calls", library.fault_calls(), flush=True)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def do(self, step: str, fault: tuple[str, int, int] | None = None) -> "Outcome":
        """Run a step to its end."""
        return self.start(step, fault).wait()

    def made(self) -> dict[str, str]:
        """What the run has made, by a digest that does not tell of times and versions."""
        return {
            str(path.relative_to(self.root)): _content(path)
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and not {"heartbeats", "receipts"} & set(path.parts)
        }

    def hidden(self) -> list[Path]:
        """Temporary files."""
        return list(self.root.rglob(".*"))

    def store_files(self) -> dict[Path, int]:
        """The committed files, with what tells whether they were written again."""
        paths = (self.root / "store" / "embeddings").rglob("[!.]*.parquet")
        return {path: path.stat().st_ino for path in paths}

    def copy(self, target: Path) -> "Run":
        """The same in another directory, times kept."""
        shutil.copytree(self.root, target, dirs_exist_ok=True)
        return Run(target)


@dataclass(frozen=True)
class Child:
    """A command at work."""

    pid: int
    out: Path
    err: Path

    def wait(self) -> "Outcome":
        _, status = os.waitpid(self.pid, 0)
        texts = [path.read_text() if path.exists() else "" for path in (self.out, self.err)]
        return Outcome(os.waitstatus_to_exitcode(status), *texts)


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    errors: str

    @property
    def traceback(self) -> bool:
        return "Traceback" in self.errors or self.code in (1, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT)

    @property
    def calls(self) -> int:
        """Calls of the kind that was asked for."""
        return int(self.out.split("calls ")[-1]) if "calls " in self.out else 0


def _content(path: Path) -> str:
    import h5py
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        table = pq.ParquetFile(path).read(use_threads=False)
        return f"{table.num_rows} {hashlib.sha256(repr(table.to_pydict()).encode()).hexdigest()}"
    if path.suffix in (".h5", ".h5ad"):
        with h5py.File(path, locking=False) as file:
            digest = hashlib.sha256()
            file.visititems(lambda name, item: digest.update(name.encode() + bytes(getattr(item, "size", 0) or 0)))
            return digest.hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix != ".json" else "json"


def baseline(root: Path, records: int) -> Run:
    """A run that went well, with as many proteins."""
    root.mkdir(parents=True)
    # Not in this process, which has to have no threads.
    code = "import reference, pathlib; reference.tiny_esm2(pathlib.Path('tiny.pt').absolute(), embed_dim=32)"
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'tests'}"}
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, env=environment)
    draw = random.Random(1)
    lines = [
        f">r{number}\n{''.join(draw.choices('ACDEFGHIKLMNPQRSTVWY', k=draw.randint(5, 90)))}\n"
        for number in range(records)
    ]
    (root / "a.fasta").write_text("".join([*lines, *lines[:3], ">bad\nM*V\n"]))
    (root / "samples.tsv").write_text("sample\tfasta\na\ta.fasta\n")
    run = Run(root)
    for step in run.steps():
        outcome = run.do(step)
        if outcome.code:
            raise RuntimeError(f"{step}: {outcome.errors}")
    return run


def judge(figures: Figures, run: Run, whole: Run, begin: str, about: str) -> None:
    """Do the steps from one on, and compare what is there with a run that went well."""
    steps = list(run.steps())
    for step in steps[steps.index(begin) :]:
        if (outcome := run.do(step)).code:
            figures.add("lost", f"{about}: {step} ends with {outcome.code} afterwards: {outcome.errors[-300:]}")
            return
    if run.made() != whole.made():
        other = sorted(dict(run.made().items() ^ whole.made().items()))
        figures.add("wrong", f"{about}: {other[:4]}")
    if left := run.hidden():
        figures.add("left", f"{about}: {[path.name for path in left[:3]]}")
    figures.add("right")


def kills(figures: Figures, whole: Run, work: Path, count: int, draw: random.Random, steps: list[str]) -> None:
    """Kill commands, worker and pool among them, at random moments; the same commands again must give the same."""
    seconds: dict[str, float] = {}
    for number in range(count):
        step = steps[number % len(steps)]
        run = _before(whole, work / f"kill{number}", step)
        begin = time.monotonic()
        if step not in seconds:
            run.do(step)
            seconds[step] = time.monotonic() - begin
            shutil.rmtree(run.root)
            run = _before(whole, work / f"kill{number}", step)
        process = run.start(step)
        # Most of the time is for imports; what can go wrong comes after.
        time.sleep(seconds[step] * draw.uniform(0.4, 1.0))
        sent, victim = draw.choice(SIGNALS), draw.choice(["parent", "group", "child"])
        committed = run.store_files()
        _kill(process, sent, victim)
        outcome = process.wait()
        about = f"{step} killed by {sent.name} ({victim})"
        figures.add("kills")
        if outcome.traceback:
            figures.add("tracebacks", f"{about}: {outcome.errors[-400:]}")
        judge(figures, run, whole, step, about)
        again = run.store_files()
        if any(again.get(path) != inode for path, inode in committed.items()):
            figures.add("doubled", f"{about}: a committed file was written again")
        shutil.rmtree(run.root)


def _kill(process: Child, sent: signal.Signals, victim: str) -> None:
    import psutil

    try:
        children = psutil.Process(process.pid).children(recursive=True)
        if victim == "group":
            os.killpg(process.pid, sent)
        elif victim == "child" and children:
            children[-1].send_signal(sent)
        else:
            os.kill(process.pid, sent)
    except (ProcessLookupError, psutil.NoSuchProcess):
        pass


def _before(whole: Run, target: Path, step: str) -> Run:
    """A run in which the steps before one are done."""
    run = Run(target)
    target.mkdir()
    for name in ("tiny.pt", "a.fasta", "samples.tsv"):
        shutil.copy2(whole.root / name, target)
    steps = list(run.steps())
    for before in steps[: steps.index(step)]:
        for place in MADE[before]:
            source = whole.root / place
            (target / place).parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, target / place)
    return run


def flips(figures: Figures, whole: Run, work: Path, count: int, draw: random.Random) -> None:
    """Flip one bit of a file that steps hand each other, and run a step that reads it."""
    readers = {
        "store/embeddings/*/*/*.parquet": ["features", "residues"],
        "results/catalog/*.parquet": ["features", "status", "csv"],
        "results/sequences/*.parquet": ["plan"],
        "results/plan/shards/*.parquet": ["embed"],
        "results/receipts/*.json": ["plan"],
        "results/plan/jobs/*.json": ["embed"],
        "results/models/*.json": ["plan", "features"],
        "tiny.pt": ["embed"],
    }
    kinds = list(readers)
    for number in range(count):
        pattern = kinds[number % len(kinds)]
        step = draw.choice(readers[pattern])
        run = whole.copy(work / f"flip{number}")
        if pattern in ("results/plan/shards/*.parquet", "tiny.pt"):
            shutil.rmtree(run.root / "store" / "embeddings")
        path = draw.choice(sorted(run.root.glob(pattern)))
        status, content = path.stat(), bytearray(path.read_bytes())
        place = draw.randrange(len(content))
        content[place] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        outcome = run.do(step)
        about = f"{pattern}, bit in byte {place}, read by {step}"
        figures.add("flips")
        if outcome.traceback:
            figures.add("tracebacks", f"{about}: {outcome.errors[-400:]}")
        elif outcome.code:
            figures.add("told")
        else:
            path.write_bytes(whole.root.joinpath(path.relative_to(run.root)).read_bytes())
            if run.made() == whole.made():
                figures.add("harmless")
            else:
                figures.add("wrong", about)
        shutil.rmtree(run.root)


def failing_calls(figures: Figures, whole: Run, work: Path, count: int, draw: random.Random) -> None:
    """Let one call to the system fail, of each kind and in each command, and all of that kind after it."""
    for step, kind, which in _calls(whole, work, draw, count):
        number = draw.choice(ERRORS.get(kind, WRITING))
        run = _before(whole, work / "call", step)
        outcome = run.do(step, (kind, which, number))
        about = f"{step}: {kind} {which} fails with {errno.errorcode[number]}"
        figures.add("calls")
        if outcome.traceback:
            figures.add("tracebacks", f"{about}: {outcome.errors[-600:]}")
        elif outcome.code not in TOLD:
            figures.add("silent", f"{about}: ends with {outcome.code}: {outcome.errors[-200:]}")
        if (run.root / "store" / "quarantine").exists():
            figures.add("lost", f"{about}: a whole file is in quarantine")
        judge(figures, run, whole, step, about)
        shutil.rmtree(run.root)


def _calls(whole: Run, work: Path, draw: random.Random, count: int) -> Iterator[tuple[str, str, int]]:
    """Which calls of which commands are to fail: so many, of all kinds and commands in turn."""
    kinds = [(step, kind) for step in whole.steps() for kind in KINDS]
    draw.shuffle(kinds)
    known: dict[tuple[str, str], int] = {}
    done = 0
    while done < count:
        for step, kind in kinds:
            if (step, kind) not in known:
                run = _before(whole, work / "count", step)
                known[step, kind] = run.do(step, (kind, -1, 0)).calls
                shutil.rmtree(run.root)
            if known[step, kind] and done < count:
                done += 1
                yield step, kind, draw.randint(1, known[step, kind])


def matrix(work: Path, *, kill: int, flip: int, call: int, seed: int, records: int) -> Figures:
    """Try so many of each kind in a directory."""
    whole, figures, draw = baseline(work / "whole", records), Figures(), random.Random(seed)
    commands = [step for step in whole.steps() if step != "embed"]
    # A worker has most to lose: every second kill is one of its.
    kills(figures, whole, work, kill, draw, [name for step in commands for name in ("embed", step)])
    flips(figures, whole, work, flip, draw)
    failing_calls(figures, whole, work, call, draw)
    return figures


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("kills", 200), ("flips", 300), ("calls", 400), ("seed", 0), ("records", 40)):
        arguments.add_argument(f"--{name}", type=int, default=default)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        figures = matrix(
            Path(directory),
            kill=options.kills,
            flip=options.flips,
            call=options.calls,
            seed=options.seed,
            records=options.records,
        )
    print(json.dumps(figures.counts, indent=1))
    sys.exit(bool(figures.faults))


def run_with_failing_calls() -> None:
    """Begin this program anew, with the library that lets calls fail in it and all its children."""
    with tempfile.TemporaryDirectory() as directory:
        library = Path(directory, "failing_calls.so")
        source = ROOT / "tests" / "faults" / "failing_calls.c"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        environment = os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
        sys.exit(subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode)


if __name__ == "__main__":
    if "LD_PRELOAD" not in os.environ:
        run_with_failing_calls()
    sys.path.insert(0, str(SCRIPTS))
    # What commands import: they are forked from here, which takes no time.
    for module in ("inputs.catalog", "model.fetch", "plan.plan", "tables.features", "tables.hdf5", "worker.worker"):
        importlib.import_module(f"esmflow.{module}")
    main()
