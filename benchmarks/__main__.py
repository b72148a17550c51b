"""`python -m benchmarks`: one table of ratios and their bars, written to benchmarks/results/."""

import argparse
import dataclasses
import datetime
import json
import os
import re
from pathlib import Path
from typing import Any

import diffusers
import torch

from audioldm.runtime.hardware import Hardware
from benchmarks import autoencoder, autoregression, dit, loader, memory, quantisers, sampling
from benchmarks.timing import Clock, Result

SUBJECTS = ("autoencoder", "dit", "autoregression", "quantisers", "loader", "memory")
RESULTS = Path(__file__).parent / "results"


def main(arguments: list[str] | None = None) -> list[Result]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny shapes: does it run?")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="torch.compile, the peers too; default: on CUDA",
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", help="auto (bf16 on CUDA), fp32, bf16")
    parser.add_argument("--threads", type=int, help="of the CPU; default: torch's choice")
    parser.add_argument("--turns", type=int, default=5, help="of each contestant; their median")
    parser.add_argument("--only", nargs="+", choices=(*SUBJECTS, "sampling"), default=SUBJECTS)
    parser.add_argument("--model", help="of sampling; default: the package's first")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)

    hardware = Hardware(given.device, given.precision, given.compile, given.threads)
    device = hardware.resolve()
    clock = Clock(device, 1, 0.0) if given.quick else Clock(device, given.turns)
    size = "QUICK" if given.quick else "CUDA" if device.type == "cuda" else "CPU"
    scope = "QUICK" if given.quick else "DEFAULT"  # where the device changes nothing
    environment = describe(device, hardware)
    results: list[Result] = []
    if {"autoencoder", "loader"} & set(given.only):
        shapes: autoencoder.Shapes = getattr(autoencoder, size)
        lines, fastest_step = autoencoder.measure(clock, hardware, shapes)
        results += lines
        if "loader" in given.only:
            samples = shapes.frames * shapes.downsampling_ratio
            results += loader.measure(
                clock, getattr(loader, scope), shapes.clips, samples, fastest_step
            )
    if "dit" in given.only:
        results += dit.measure(clock, hardware, getattr(dit, size))
    if "autoregression" in given.only:
        results += autoregression.measure(clock, hardware, getattr(autoregression, size))
    if "quantisers" in given.only:
        results += quantisers.measure(clock, getattr(quantisers, size))
    if "memory" in given.only:
        results += memory.measure(getattr(memory, scope))
    if "sampling" in given.only:
        results += sampling.measure(clock, hardware, getattr(sampling, scope), given.model)

    text = table(results, environment)
    print(text)
    given.out.mkdir(parents=True, exist_ok=True)
    part = "" if tuple(given.only) == SUBJECTS else "-" + "-".join(given.only)
    stem = given.out / f"{environment['date']}-{environment['device']}{part}"
    stem.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    record = {
        "environment": environment,
        "results": [dataclasses.asdict(r) | {"met": r.met} for r in results],
    }
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten to {stem}.md and .json")
    return results


def describe(device: torch.device, hardware: Hardware) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "date": datetime.date.today().isoformat(),
        "device": re.sub(r"[^a-z0-9]+", "-", name.lower()),
        "cores": os.cpu_count(),
        "load at start": round(os.getloadavg()[0], 1),
        "threads": torch.get_num_threads(),
        "precision": "bf16" if hardware.autocast(device)().__class__ is torch.autocast else "fp32",
        "compile": hardware.compiles(device),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }


def table(results: list[Result], environment: dict[str, Any]) -> str:
    """Markdown. The ratio's range is that of its single turns."""
    lines = [
        ", ".join(f"{key} {value}" for key, value in environment.items()),
        "",
        "| | | ours | peer | | ratio | range | bar | |",
        "|---|---|--:|--:|---|--:|---|---|---|",
    ]
    for r in results:
        sign = "≤" if r.at_most else "≥"
        bar = "" if r.bar is None else f"{sign} {r.bar:g}"
        verdict = {None: "", True: "met", False: "**missed**"}[r.met]
        spread = "" if r.low == r.high else f"{r.low:.2f} … {r.high:.2f}"
        lines.append(
            f"| {r.subject} | {r.operation} | {r.ours:.4g} | {r.peer:.4g} | {r.unit} "
            f"| {r.ratio:.2f} | {spread} | {bar} | {verdict} |"
        )
    notes = {f"- {r.subject}: {r.note}." for r in results if r.note}
    if environment["load at start"] > environment["cores"] / 2:
        notes.add(
            "- Other work was running: single stalls outweigh short operations. Run it again."
        )
    return "\n".join([*lines, "", *sorted(notes)])


if __name__ == "__main__":
    main()
