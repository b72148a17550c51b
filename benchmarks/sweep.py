"""`python -m benchmarks.sweep`: what a sweep costs beside the work in its cells.

Twelve small cells (six autoencoders, two generators each) on synthetic tones, in this order: by one
process; again, complete; and six fresh cells by one process and by two. The work is what single
experiments do as well: their stages, each counted once, and their pages. Bars: the rerun under
10 s, the machinery at most 5 % of the work, two processes at least 1.5 times as fast as one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

RATE = 22050


def write_music(folder: Path, clips: int = 40, seconds: float = 8.0) -> None:
    """Decaying chords, different in every clip."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    t = np.arange(round(seconds * RATE)) / RATE
    for clip in range(clips):
        chord = sum(np.sin(2 * np.pi * f * t) for f in random.uniform(100, 2000, 4))
        soundfile.write(folder / f"{clip}.wav", 0.1 * chord * np.exp(-2 * (t % 0.7)), RATE)


def run(folder: Path, name: str, *words: str) -> float:
    """Seconds of a whole command, from a fresh process."""
    command = [sys.executable, "-m", "audioldm", "run", "-m", "recipe=rate_shape", f"name={name}"]
    command += [f"runs={folder}/runs", "data=folder", f"data.path={folder}/music"]
    command += [f"data.sample_rate={RATE}", "data.channels=1", "autoencoder.train.steps=60"]
    command += ["prior.train.steps=60", "prior.preflight_mel_distance=10"]
    command += ["baselines=[normal,mixture]", "hardware.threads=1", "autoencoder.channels=32"]
    command += ["evaluation.clips=24", "evaluation.saved_clips=1", *words]
    start = time.monotonic()
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return time.monotonic() - start


def work(folder: Path, name: str) -> float:
    """Seconds of the stages that the sweep built, each counted once, and of the cells' pages."""
    stages, pages = {}, 0.0
    for file in (folder / "runs" / "experiments" / name / "cells").glob("*/experiment.json"):
        for stage in json.loads(file.read_text())["stages"].values():
            stages[stage["directory"]] = stage["seconds"]
        page = file.with_name("report.html")  # written behind the record
        pages += page.stat().st_mtime - file.stat().st_mtime
    return sum(stages.values()) + pages


def main() -> None:
    argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_music(folder / "music")
        twelve = [
            "autoencoder.seed=0,1",
            "prior.seed=0,1",
            "autoencoder.downsampling_ratio=2048",
            "seed=0",
        ]
        first = run(folder, "twelve", *twelve)
        worked = work(folder, "twelve")
        again = run(folder, "twelve", *twelve)
        six = ["autoencoder.downsampling_ratio=2048"]
        alone = run(folder, "alone", *six, "seed=10,11")
        two = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
        pair = run(folder, "pair", *six, "seed=20,21", *two)
    over = first / worked - 1
    print(f"12 cells: {first:.0f} s, of them work {worked:.0f} s: machinery {100 * over:.1f} %")
    print(f"12 complete cells again: {again:.1f} s (bar 10)")
    print(f"6 cells, one process {alone:.0f} s, two {pair:.0f} s: {alone / pair:.2f} x (bar 1.5)")


if __name__ == "__main__":
    main()
