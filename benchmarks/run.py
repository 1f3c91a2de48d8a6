"""The CPU benchmarks: run them all, print a table, write the record benchmarks/results/cpu.json.

    make bench                                                            all, some 20 minutes on two cores
    .venv/bin/python benchmarks/run.py --proteins 20 --records 20000      a quick look
    .venv/bin/python benchmarks/run.py --only forward                     one part
    .venv/bin/python benchmarks/run.py --only large_plan,large_table,many_samples

The parts, on the same real proteins (inputs.py) and the same ESM-2 8M:
- end_to_end: FASTA to vectors, the whole command, against an equivalent of fair-esm's extraction script (end_to_end.py)
- forward: forward passes and pooling alone, against transformers and fair-esm's module; the engine's fill, its share
  of the machine's peak and of the time outside the forward pass (forward.py)
- workers: the worker's start, the time between its shards, and two processes against one (workers.py)
- large_model: the 650M shape with random weights on a handful of the proteins, against fair-esm's module
  (large_model.py)
- scale: ingest and plan of a million records (scale.py)
- large_plan, large_table, many_samples: only if asked for; some 15 minutes and 20 GB of disk (scale.py)
- exports: only if asked for; each export of 100,000 proteins (exports.py)
- esm_cpp: only if asked for; forward passes alone, against esm-cpp, which it installs (with_esm_cpp.py)
- precisions: only if asked for; bf16 beside float32, for CPUs that multiply faster in it (precisions.py)
Contenders take turns and medians are compared; run it on a quiet machine (measure.py tells why). Nothing fails for
being slow. With --only, the record's other parts stay as they are.
"""

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import end_to_end
import exports
import precisions
import scale
import with_esm_cpp
import workers
from measure import BUILD, HERE, MAX_RESIDUES, PYTHON, figures, run

PARTS = ["end_to_end", "forward", "large_model", "workers", "scale"]
LARGE_PARTS = {
    "large_plan": lambda inputs, work: scale.measure_plan(inputs, work, 10_000_000, 10_000),
    "large_table": lambda inputs, work: scale.measure_table(inputs, work, 1_000_000, 50_000),
    "many_samples": lambda inputs, work: scale.measure_samples(inputs, work, 200),
    "exports": lambda inputs, work: exports.measure(inputs, work, 100_000),
}
ALL_PARTS = [*PARTS, "esm_cpp", "precisions", *LARGE_PARTS]
PACKAGES = ["torch", "transformers", "fair-esm", "snakemake", "duckdb", "pyarrow", "numpy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proteins", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--records", type=int, default=1_000_000, help="synthetic records of the part 'scale'")
    parser.add_argument("--only", type=lambda text: text.split(","), default=PARTS, help="parts, with commas")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "cpu.json")
    options = parser.parse_args()
    if unknown := set(options.only) - set(ALL_PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(ALL_PARTS)}")

    BUILD.mkdir(parents=True, exist_ok=True)
    old = json.loads(options.output.read_text()) if options.output.exists() else {}
    machine = {"cpu": cpu_model(), "cores": cores(), "system": platform.platform()}
    versions = {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}
    date = {"date": datetime.now(UTC).isoformat(timespec="seconds")}
    record = date | {"machine": machine, "versions": versions} | {name: old[name] for name in ALL_PARTS if name in old}

    def keep(part: str, found: dict[str, Any]) -> None:
        record[part] = date | found
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(record, indent=1) + "\n")

    with tempfile.TemporaryDirectory(dir=BUILD) as directory:
        work = Path(directory)
        inputs = work / "inputs"
        run([PYTHON, HERE / "inputs.py", inputs, "--proteins", str(options.proteins)], work / "inputs.log")
        lengths = [len(line) for line in (inputs / "proteins.fasta").read_text().split("\n")[1::2]]
        residues = sum(min(length, MAX_RESIDUES) for length in lengths)
        about = {"proteins": len(lengths), "residues": residues}
        about |= {"longer_than_1022": sum(length > MAX_RESIDUES for length in lengths)}
        print(f"{len(lengths)} proteins, {residues:,} residues; {cpu_model()}, {cores()} cores")
        if "end_to_end" in options.only:
            costs = end_to_end.measure(inputs, work, options.repeats, residues, len(lengths))
            keep("end_to_end", about | {"contenders": costs})
            print_end_to_end(costs)
        if "forward" in options.only:
            keep("forward", about | measure_forward(inputs, work, options.repeats, residues))
            print_forward(record["forward"])
        if "workers" in options.only:
            keep("workers", workers.measure(inputs, work / "workers", options.repeats))
            print_workers(record["workers"])
        if "large_model" in options.only:
            keep("large_model", measure_large_model(inputs, work, options.repeats))
            print_contenders("The 650M shape, forward passes", record["large_model"]["contenders"])
        if "esm_cpp" in options.only:
            keep("esm_cpp", with_esm_cpp.measure(inputs, work / "esm_cpp", options.repeats, cores()))
            print_contenders("ESM-2 8M beside esm-cpp, forward passes", record["esm_cpp"]["contenders"])
        if "precisions" in options.only:
            found = precisions.measure(inputs, work / "precisions", options.repeats, residues, len(lengths), cores())
            keep("precisions", about | found)
            print_precisions(record["precisions"])
        if "scale" in options.only:
            keep("scale", scale.measure(inputs, work / "scale", options.records))
            print_scale(record["scale"])
        for name in [name for name in LARGE_PARTS if name in options.only]:
            keep(name, LARGE_PARTS[name](inputs, work / name))
            print_large(name, record[name])
    print(f"\nrecord: {options.output}")


def measure_forward(inputs: Path, work: Path, repeats: int, residues: int) -> dict[str, Any]:
    """Run the contenders of forward.py in turns, and set their figures side by side."""
    import numpy as np

    names = ["esmflow", "gemm", "transformers", "fair_esm"]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            vectors = work / f"{name}.npy"
            command = [PYTHON, HERE / "forward.py", name, inputs, "--threads", str(cores()), "--vectors", vectors]
            runs[name].append(figures(command, work / f"{name}.log"))
    contenders = {}
    for name in ("esmflow", "transformers", "fair_esm"):
        for label in runs[name][0]["seconds"]:
            seconds = [own["seconds"][label] for own in runs[name]]
            padding = runs[name][0]["padding_share"]
            contenders[label] = {
                "seconds": [round(value, 3) for value in seconds],
                "residues_per_second": round(residues / median(seconds), 1),
                "padding_share": round(padding[label] if isinstance(padding, dict) else padding, 4),
                "others": [own["others"] for own in runs[name]],
            }
    reference = np.load(work / "fair_esm.npy").astype(np.float64)
    differences = {}
    for name in ("esmflow", "transformers"):
        distance = np.linalg.norm(np.load(work / f"{name}.npy") - reference, axis=1)
        differences[name] = float(f"{(distance / np.linalg.norm(reference, axis=1)).max():.3g}")
    return {
        "contenders": contenders,
        "largest_relative_difference_to_fair_esm": differences,
        "engine": _engine_figures(runs["esmflow"], runs["gemm"]),
    }


def measure_large_model(inputs: Path, work: Path, repeats: int) -> dict[str, Any]:
    """Run the contenders of large_model.py in turns."""
    import numpy as np

    names = {"esmflow": "esmflow", "fair_esm": "fair-esm's module"}
    contenders: dict[str, Any] = {label: {"seconds": [], "cpu_seconds": [], "others": []} for label in names.values()}
    about: dict[str, Any] = {}
    for _ in range(repeats):
        for name, label in names.items():
            command = [PYTHON, HERE / "large_model.py", name, inputs / "proteins.fasta", "--threads", str(cores())]
            about = figures([*command, "--vectors", work / f"large-{name}.npy"], work / f"large-{name}.log")
            for spent in ("seconds", "cpu_seconds", "others"):
                contenders[label][spent].append(round(about.pop(spent), 3))
    for own in contenders.values():
        own["residues_per_second"] = round(about["residues"] / median(own["seconds"]), 1)
    ours, theirs = (np.load(work / f"large-{name}.npy").astype(np.float64) for name in names)
    difference = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    return about | {
        "contenders": contenders,
        "largest_relative_difference_to_fair_esm": float(f"{difference.max():.3g}"),
    }


def _engine_figures(runs: Sequence[dict[str, Any]], gemm: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The engine's own figures: medians, but for the peak, of which the highest is the machine's."""
    peak = max(own["peak"] for own in gemm)
    rate = runs[0]["flops"] / median(own["seconds"]["esmflow"] for own in runs)
    figures = ["tokens_per_pack", "packs", "padding_share", "fill", "fill_without_last_pack"]
    figures += ["share_outside_forward", "share_waiting_for_last_packs", "share_of_cpu_time_outside_forward"]
    return {name: round(median(own[name] for own in runs), 4) for name in figures} | {
        "gemm_peak_flops_per_second": round(peak),
        "gemm_feed_forward_shape_flops_per_second": round(max(own["feed_forward_shape"] for own in gemm)),
        "engine_flops_per_second": round(rate),
        "share_of_gemm_peak": round(rate / peak, 4),
    }


def print_contenders(title: str, contenders: dict[str, Any]) -> None:
    ours = contenders["esmflow"]["residues_per_second"]
    print(
        f"\n{title}\n  {'':30} {'residues/s':>12} {'esmflow is':>11}   seconds of each run (others' share of the CPUs)"
    )
    for name, own in contenders.items():
        rate = own["residues_per_second"]
        each = zip(own["seconds"], own["others"], strict=True)
        runs = "  ".join(f"{seconds:.2f} ({others:.0%})" for seconds, others in each)
        print(f"  {name:30} {rate:>12,.0f} {ours / rate:>10.2f}x   {runs}")


def print_end_to_end(contenders: dict[str, Any]) -> None:
    print_contenders("End to end, the whole command", contenders)
    for name, own in contenders.items():
        print(f"  {name}: {own['cpu_seconds']:.1f} CPU seconds, peak {own['peak_bytes'] / 1e6:,.0f} MB")
    own = contenders["esmflow"]
    rules = ", ".join(f"{rule} {seconds:.1f}" for rule, seconds in own["rule_seconds"].items())
    print(f"  esmflow's rules, seconds: {rules}")
    print(f"  within embed.py: {own['worker_seconds']:.1f} s, with the model loaded {own['embed_seconds']:.1f} s")
    print(
        f"  peak memory of embed.py: {own['embed_peak_bytes'] / 1e6:,.0f} MB; fill of its packs {own['pack_fill']:.3f}"
    )


def print_forward(part: dict[str, Any]) -> None:
    print_contenders("Forward passes and pooling, weights loaded, warmed up", part["contenders"])
    for name, difference in part["largest_relative_difference_to_fair_esm"].items():
        print(f"  largest relative L2 difference of {name} to fair-esm: {difference:.1e}")
    print("\nThe engine")
    for name, value in part["engine"].items():
        text = f"{value / 1e9:,.1f} GFLOP/s" if name.endswith("flops_per_second") else f"{value:,}"
        print(f"  {name.replace('_', ' '):44} {text}")


def print_workers(part: dict[str, Any]) -> None:
    print("\nThe worker, in processes of one thread each")
    for name in ("one_process", "two_processes"):
        own = part[name]
        print(
            f"  {name.replace('_', ' '):14} {own['shards']} shards in {own['seconds']:.1f} s, of them "
            f"{own['startup_seconds']:.1f} s before the first; idle between shards {own['idle_share']:.2%}"
        )
    print(f"  two are {part['speedup_after_start']:.2f} times as fast as one, once started")


def print_precisions(part: dict[str, Any]) -> None:
    for name in ("ESM-2 8M", "650M shape"):
        print(f"\n{name}, forward passes and pooling; bf16's least cosine to float32: {part[name]['least_cosine']:.6f}")
        exact = part[name]["precisions"]["fp32"]
        for precision, own in part[name]["precisions"].items():
            rate, share = own["flops_per_second"], own["share_of_gemm_peak"]
            times = rate / exact["flops_per_second"]
            print(f"  {precision}: {rate / 1e9:,.1f} GFLOP/s, {share:.0%} of its peak, {times:.2f} x float32")
    print_end_to_end(part["end_to_end"])


def print_scale(part: dict[str, Any]) -> None:
    print(f"\nIngest and plan of {part['records']:,} records ({part['fasta_bytes'] / 1e6:,.0f} MB of FASTA)")
    for name, seconds in part["seconds"].items():
        cpu, peak = part["cpu_seconds"][name], part["peak_bytes"][name]
        print(f"  {name:8} {seconds:8.1f} s ({cpu:.1f} CPU seconds), peak {peak / 1e6:,.0f} MB")
    print(f"  {'both':8} {part['total_seconds']:8.1f} s, peak {part['highest_peak_bytes'] / 1e6:,.0f} MB")


def print_large(name: str, part: dict[str, Any]) -> None:
    figures = ["records", "samples", "stored", "store_files", "shards"]
    about = ", ".join(f"{part[figure]:,} {figure.replace('_', ' ')}" for figure in figures if figure in part)
    print(f"\n{name.replace('_', ' ')}: {about}")
    for step, seconds in part["seconds"].items():
        cpu, peak = part["cpu_seconds"][step], part["peak_bytes"][step]
        print(f"  {step:8} {seconds:8.1f} s ({cpu:.1f} CPU seconds), peak {peak / 1e6:,.0f} MB")
    if "bytes_per_second" in part:
        print(f"  {part['bytes_per_second'] / 1e6:,.0f} MB of vectors per second")


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
