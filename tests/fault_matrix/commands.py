"""A small run: the commands that Snakemake gives for it, each begun in a child that is forked from here."""

import ctypes
import hashlib
import json
import multiprocessing
import os
import random
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
#: Seconds that no command takes.
DEADLINE = 300.0
CONFIG = {
    "samples": "samples.tsv",
    "variants": "variants.tsv",
    "models": {
        "m": {
            "weights": "tiny.pt",
            "representations": ["mean", "per_tok", "masked_marginals", "likelihoods"],
            "long_sequences": "truncate",
            "max_length": 20,
        }
    },
    "contigs": ["mean"],
    "exports": ["csv", "npy", "uniprot_h5", "fair_esm_pt", "bio_embeddings", "anndata", "gff", "proteingym"],
    # Sample a is larger and its tables are in parts, those of b in one file.
    "tables": {"part_mb": 0.0008},
    "sharding": {"target_minutes": 1e-6},
    "workers": {"max_jobs": 1, "gpus_per_job": 0},
}
#: What no command reads but to tell of it.
APART = {"heartbeats", "logs", "benchmarks", ".snakemake", "quarantine", "tmp"}
#: What holds times.
TIMED = {"receipts", "report"}


@dataclass(frozen=True)
class Step:
    """A command of the run."""

    name: str
    kind: str
    """Its rule, and the form of what it makes."""
    script: str
    arguments: list[str]
    made_for: tuple[str, Path] | None = None
    """What Snakemake has written after it, and where."""

    @classmethod
    def of_shell(cls, line: str) -> "Step":
        """The command that a rule gives to the shell, but for the path of Python and of the scripts."""
        script, *words = shlex.split(re.sub(r"\$\{[^}]*\}", "", line))
        end = words.index("&&") if "&&" in words else len(words)
        arguments = words[:end]
        log = Path(arguments[arguments.index("--log") + 1]).relative_to("logs").with_suffix("")
        kind = log.parts[0] + log.suffix.replace(".mean", "")
        made_for = (words[end + 2], Path(words[end + 4])) if words[end:] else None
        return cls(str(log), kind, script, arguments, made_for)


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int | None
    """None: it did not end."""
    errors: str

    @property
    def traceback(self) -> bool:
        return "Traceback" in self.errors or self.code in (1, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT)

    @property
    def told(self) -> bool:
        """Whether a line says what was wrong."""
        return "error: " in self.errors


@dataclass(frozen=True)
class Child:
    """A command at work."""

    pid: int
    root: Path
    step: Step

    @property
    def errors(self) -> Path:
        """What it says."""
        return Path(f"{self.root}.err")

    def wait(self) -> Outcome:
        """How it ends. What its rule does once it is done is done then."""
        deadline = time.monotonic() + DEADLINE
        while not (ended := os.waitpid(self.pid, os.WNOHANG))[0] and time.monotonic() < deadline:
            time.sleep(0.002)
        if not ended[0]:
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(ended[1]) if ended[0] else None
        if code == 0 and self.step.made_for:
            digest, path = self.step.made_for
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_text(f"{digest}\n")
        return Outcome(code, self.errors.read_text() if self.errors.exists() else "")


@dataclass(frozen=True)
class Run:
    """A directory of the run."""

    root: Path

    def start(self, step: Step, fault: Mapping[str, str] | None = None) -> Child:
        """Begin a command, in a process group of its own, with the variables that let calls to the system fail."""
        child = Child(os.fork(), self.root, step)
        if child.pid:
            return child
        code, context = 1, multiprocessing.get_context("fork")
        try:
            os.setpgid(0, 0)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.chdir(self.root)
            (self.root / "tmp").mkdir(exist_ok=True)
            errors = os.open(child.errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for number in (1, 2):
                os.dup2(errors, number)
            os.environ.update({"TMPDIR": str(self.root / "tmp")} | dict(fault or {}))
            ctypes.CDLL(os.environ["LD_PRELOAD"]).fault_arm()
            # A worker's processes are forked, too: it takes seconds to import PyTorch anew.
            multiprocessing.get_context = lambda _: context  # type: ignore[assignment]
            sys.argv = [str(SCRIPTS / step.script), *step.arguments]
            try:
                runpy.run_path(sys.argv[0], run_name="__main__")
                code = 0
            except SystemExit as ended:
                code = int(ended.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def do(self, step: Step, fault: Mapping[str, str] | None = None) -> Outcome:
        """Run a command to its end."""
        return self.start(step, fault).wait()

    def files(self) -> set[Path]:
        """All that is there, relative to the run's directory, but for what tells of the moment."""
        paths = (path.relative_to(self.root) for path in self.root.rglob("*") if path.is_file())
        return {path for path in paths if not APART & set(path.parts)}

    def contents(self, paths: Iterable[Path]) -> dict[Path, str]:
        """Digests of what files hold, which do not tell of times."""
        return {path: "" if TIMED & set(path.parts) else content(self.root / path) for path in paths}

    def hidden(self) -> list[Path]:
        """What is left that nobody asked for."""
        places = [self.root / "results", self.root / "store", self.root / "tmp"]
        found = [path for place in places for path in place.rglob("*")]
        return [
            path
            for path in found
            if path.is_relative_to(places[-1]) or (path.name.startswith(".") and path.name != ".snakemake_timestamp")
        ]

    def committed(self) -> dict[Path, int]:
        """The store's files, with what tells whether they were written again."""
        paths = (self.root / "store" / "embeddings").rglob("[!.]*.parquet")
        return {path: path.stat().st_ino for path in paths}


@dataclass(frozen=True)
class Whole:
    """A run that went well: its commands in their order, what each made, and what that holds."""

    run: Run
    inputs: set[Path]
    made: dict[str, set[Path]]
    """By the name of the step, in their order."""
    steps: list[Step]
    """One of each kind."""
    contents: dict[Path, str]

    def step(self, kind: str) -> Step:
        """The command of a kind."""
        return next(step for step in self.steps if step.kind == kind)

    def before(self, step: Step, target: Path) -> Run:
        """A run in which the commands before one are done."""
        names = list(self.made)
        return self.copy(target, self.inputs.union(*(self.made[name] for name in names[: names.index(step.name)])))

    def copy(self, target: Path, paths: set[Path]) -> Run:
        """A run that has these files, times kept."""
        target.mkdir()
        for path in paths:
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.run.root / path, target / path)
        return Run(target)


def content(path: Path) -> str:
    """A digest of what a file holds, which does not tell of times and versions."""
    import h5py
    import numpy as np
    import pyarrow.parquet as pq

    digest = hashlib.sha256()
    if path.suffix == ".parquet":
        table = pq.ParquetFile(path).read(use_threads=False)
        digest.update(repr(table.to_pydict()).encode())
    elif path.suffix in (".h5", ".h5ad"):
        with h5py.File(path, locking=False) as file:

            def add(name: str, item: h5py.Group | h5py.Dataset) -> None:
                values = np.asarray(item[()]).tolist() if isinstance(item, h5py.Dataset) else None
                digest.update(repr((name, values)).encode())

            file.visititems(add)
    else:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def write_inputs(root: Path, records: int) -> None:
    """Weights, proteins, contigs, variants, sheet and config of a small run."""
    root.mkdir(parents=True)
    # Not in this process: threads of PyTorch would be lacking in those that are forked from it.
    writer = multiprocessing.get_context("fork").Process(target=_write_weights, args=(root / "tiny.pt",))
    writer.start()
    writer.join()
    if writer.exitcode:
        raise RuntimeError("the weights cannot be written")
    draw = random.Random(1)
    proteins = ["".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=draw.randint(5, 40))) for _ in range(records)]
    lines = [f">r{number}\n{protein}\n" for number, protein in enumerate(proteins)]
    (root / "a.fasta").write_text("".join([*lines, *lines[:3], ">bad\nM*V\n"]))
    (root / "b.fna").write_text(f">c\n{''.join(draw.choices('ACG', k=45))}\n")
    (root / "samples.tsv").write_text("sample\tfasta\tkind\na\ta.fasta\t\nb\tb.fna\tsix_frame\n")
    (root / "variants.tsv").write_text(f"sample\tid\tmutant\na\tr0\t{proteins[0][0]}1W\n")
    (root / "config.yaml").write_text(json.dumps(CONFIG))


def _write_weights(path: Path) -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    import reference

    reference.tiny_esm2(path, embed_dim=32)


def snakemake(*arguments: str) -> list[str]:
    """Snakemake's command line."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]
    return [*command, "--configfile", "config.yaml", *arguments]


def planned(root: Path, *targets: str) -> list[Step]:
    """The commands that Snakemake would run now for these targets, in their order."""
    command = snakemake("--dry-run", "--printshellcmds", "--", *targets)
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    shutil.rmtree(root / ".snakemake")
    lines = re.findall(r'"\$ESMFLOW_PYTHON" "\$ESMFLOW"/(.*)', done.stdout + done.stderr)
    return [Step.of_shell(line) for line in lines]


def run_well(root: Path, records: int) -> Whole:
    """A run that goes well, command by command."""
    write_inputs(root, records)
    run = Run(root)
    inputs = run.files()
    made: dict[str, set[Path]] = {}

    def do(step: Step) -> None:
        before = run.files()
        outcome = run.do(step)
        if outcome.code:
            raise RuntimeError(f"{step}: {outcome.errors}")
        made[step.name] = run.files() - before

    up_to_plan = planned(root, "results/plan")
    for step in up_to_plan:
        do(step)
    later = planned(root, "all", "preflight", "report")
    later.append(Step("verify", "verify", "store.py", ["verify", "store"]))
    for step in later:
        do(step)
    return Whole(run, inputs, made, _one_of_each([*up_to_plan, *later]), run.contents(run.files()))


def _one_of_each(steps: Sequence[Step]) -> list[Step]:
    first = {step.kind: step for step in sorted(steps, key=lambda step: step.name, reverse=True)}
    return [step for step in steps if first[step.kind] == step]
