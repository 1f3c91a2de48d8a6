"""Kills at random moments, and the same command again, which must go on to what a run that went well has made."""

import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import psutil
from commands import DEADLINE, Child, Run, Step, Whole, snakemake
from judge import Figures, compare, go_on

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
#: What a command may end with that a signal reached: done before, interrupted, or ended before it was ready to answer.
ANSWERS = {0, 75}
#: What Snakemake is asked for; the matrix kills the commands of other targets by themselves.
TARGETS = ["--", "features", "status"]


def kills(figures: Figures, whole: Whole, work: Path, count: int, draw: random.Random) -> None:
    """Kill workers, pools of two processes and Snakemake, and other commands in between."""
    worker = whole.step("embed")
    pool = replace(worker, arguments=[*worker.arguments, "--processes", "2"])
    commands = [step for step in whole.steps if step != worker]
    draw.shuffle(commands)
    others = cycle(commands)
    seconds: dict[str, float] = {}
    for number in figures.tries("kills", count):
        target = work / "killed"
        match number % 10:
            case 9:
                kill_snakemake(figures, whole, target, draw, seconds)
            case 1 | 5:
                kill_command(figures, whole, worker, target, draw, seconds)
            case 3 | 7:
                kill_command(figures, whole, pool, target, draw, seconds)
            case _:
                kill_command(figures, whole, next(others), target, draw, seconds)
        shutil.rmtree(target)


def kill_command(
    figures: Figures, whole: Whole, step: Step, target: Path, draw: random.Random, seconds: dict[str, float]
) -> None:
    """Kill a command, one of its processes, or all of them at once."""
    about = " ".join([step.name, *step.arguments[-2:]]) if "--processes" in step.arguments else step.name
    if about not in seconds:
        begin = time.monotonic()
        whole.before(step, target).do(step)
        seconds[about] = time.monotonic() - begin
        shutil.rmtree(target)
    run = whole.before(step, target)
    process = run.start(step)
    time.sleep(seconds[about] * draw.random())
    sent, victim = draw.choice(SIGNALS), draw.choice(["parent", "group", "child"])
    committed = run.committed()
    _kill(process, sent, victim)
    outcome = process.wait()
    about += f" killed by {sent.name} ({victim})"
    if outcome.traceback:
        figures.add("tracebacks", f"{about}: {outcome.errors[-600:]}")
    elif outcome.code not in ANSWERS | {-sent} or (outcome.code == 75 and not outcome.told):
        figures.add("silent", f"{about}: ends with {outcome.code}: {outcome.errors[-300:]}")
    go_on(figures, whole, run, step, about)
    again = run.committed()
    if any(again.get(path) != inode for path, inode in committed.items()):
        figures.add("doubled", f"{about}: a committed file was written again")


def _kill(process: Child, sent: signal.Signals, victim: str) -> None:
    with suppress(ProcessLookupError, psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
        if victim == "group":
            os.killpg(process.pid, sent)
        elif victim == "child" and children:
            children[-1].send_signal(sent)
        else:
            os.kill(process.pid, sent)


def kill_snakemake(
    figures: Figures, whole: Whole, target: Path, draw: random.Random, seconds: dict[str, float]
) -> None:
    """Kill Snakemake, or it and all that it has begun; then do as the docs say: unlock, and the same command again."""
    run = whole.copy(target, whole.inputs)
    begin = time.monotonic()
    process = _start_snakemake(run)
    if "snakemake" not in seconds:
        process.wait(DEADLINE)
        seconds["snakemake"] = time.monotonic() - begin
        shutil.rmtree(target)
        run = whole.copy(target, whole.inputs)
        process = _start_snakemake(run)
    time.sleep(seconds["snakemake"] * draw.random())
    family = psutil.Process(process.pid).children(recursive=True)
    sent, all_at_once = draw.choice(SIGNALS), draw.random() < 0.5
    committed = run.committed()
    with suppress(ProcessLookupError):
        (os.killpg if all_at_once else os.kill)(process.pid, sent)
    process.wait(DEADLINE)
    about = f"Snakemake killed by {sent.name}" + (" with all its children" if all_at_once else "")
    if any((run.root / ".snakemake" / "locks").glob("*")):
        _snakemake(run, "--unlock")
    again = _snakemake(run, "--rerun-incomplete", *TARGETS)
    # Orphans of the one that was killed do no harm, but are not to be taken for something that is left.
    psutil.wait_procs(family, DEADLINE)
    if again.returncode:
        figures.add(
            "lost", f"{about}: ends with {again.returncode} afterwards: {(again.stdout + again.stderr)[-1500:]}"
        )
        return
    logs = [path for path in (run.root / "logs").rglob("*.log") if "Traceback" in path.read_text()]
    if logs or "Traceback" in again.stdout + again.stderr:
        figures.add("tracebacks", f"{about}: {logs} {again.stderr[-600:]}")
    compare(figures, whole, run, {path for path in whole.contents if {"features", "status"} & set(path.parts)}, about)
    if any(run.committed().get(path) != inode for path, inode in committed.items()):
        figures.add("doubled", f"{about}: a committed file was written again")


def _start_snakemake(run: Run) -> subprocess.Popen[bytes]:
    """Snakemake in a process group of its own."""
    with (run.root / "snakemake.out").open("wb") as out:
        command = snakemake(*TARGETS)
        return subprocess.Popen(command, cwd=run.root, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)


def _snakemake(run: Run, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Snakemake to its end."""
    return subprocess.run(snakemake(*arguments), cwd=run.root, capture_output=True, text=True, check=False)
