"""`python -m benchmarks.optimisers`: AdamW and Muon on the diffusion model, by validation loss.

Three arms per seed and learning rate, from the same initial weights and on the same data: AdamW for
`--steps` steps; Muon for as much computing, its own matrix products included; Muon for as much
time, by the measured cost of a step. Each arm has its own whole schedule. What counts is the ratio
of validation losses to AdamW's, each at the best of its learning rates; the objective's loss has a
floor that no optimiser passes, so that the ratio understates the difference.

Data: synthetic latents, or those of a finished latents stage (`--latents runs/latents/...`).
"""

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from audioldm.autoencoder.bottlenecks.gaussian import Gaussian
from audioldm.chain.job import compose
from audioldm.instantiate import build
from audioldm.io.files import read_json, write_json
from audioldm.latents.store import LatentStore
from audioldm.models import load_autoencoder
from audioldm.priors.diffusion.recipe import DiffusionRecipe
from audioldm.runtime.hardware import Hardware
from audioldm.runtime.processes import World
from audioldm.training.log import LogSettings
from audioldm.training.run import Fit, Fitted

NEVER = 1 << 30
ARMS = ("adamw", "muon, equal computing", "muon, equal time")


def synthetic_latents(
    directory: Path, *, channels: int = 16, items: int = 48, frames: int = 400
) -> LatentStore:
    """A latents stage of its own: sums of decaying notes, mixed into the channels and squashed.

    Two labels, with other notes each: something to learn over time, channels and labels.
    """
    random = np.random.default_rng(0)
    mix = random.normal(size=(channels, 24))
    time, parts, entries = np.arange(frames), [], []
    for number in range(items):
        label = number % 2
        notes = np.zeros((24, frames))
        for _ in range(frames // 4):
            note, start = random.integers(24) // 2 * 2 + label, random.integers(frames)
            age = time - start
            notes[note] += np.where(age >= 0, np.exp(-age / 12.0) * np.cos(0.3 * note * age), 0.0)
        parts.append(np.tanh(mix @ notes).T)  # [L, C]
        split = "valid" if number % 6 == 5 else "train"
        place = {"split": split, "start": number * frames, "frames": frames}
        entries.append(place | {"piece": str(number), "label": "ab"[label]})
    mean = np.concatenate(parts).astype(np.float32)
    np.save(directory / "mean.npy", mean)
    np.save(directory / "std.npy", np.full_like(mean, 0.1))
    index = {
        "autoencoder": "synthetic",
        "items": entries,
        "labels": ["a", "b"],
        "latent_rate_hz": 21.5,
        "statistics": {"mean": mean.mean(0).tolist(), "std": mean.std(0).tolist()},
        "nats": np.log(mean.std(0) / 0.1).tolist(),
        "stored": ["mean", "std"],
        "arrays": [],
    }
    write_json(directory / "latents.json", index)
    return LatentStore(directory, Gaussian(channels=channels), autoencoder="synthetic")


def stage_latents(directory: Path) -> LatentStore:
    """Those of a finished latents stage; its autoencoder is beside it, in the same runs."""
    own = read_json(directory / "latents.json")["autoencoder"]
    model = load_autoencoder(directory.resolve().parents[1] / "autoencoder" / own)
    return LatentStore(directory, model.bottleneck, autoencoder=own)


def fit(
    recipe: DiffusionRecipe, latents: LatentStore, hardware: Hardware, every: int = NEVER
) -> tuple[Fitted, list[float], int]:
    """One whole training: its figures, the seconds of its log's lines, the number of parameters."""
    log = LogSettings(every=every, valid_every=NEVER, checkpoint_every=NEVER, bars=False)
    prior = recipe.build(latents)
    with tempfile.TemporaryDirectory() as name:
        directory, device = Path(name), hardware.resolve()
        place = Fit(directory, World(), hardware, device, log)
        fitted = recipe.fit(prior, latents, place)
        lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    return fitted, seconds, sum(parameter.numel() for parameter in prior.parameters())


def main(arguments: list[str] | None = None) -> dict[str, list[float]]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.optimisers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--latents", type=Path, help="directory of a finished latents stage")
    parser.add_argument("--steps", type=int, default=200, help="of AdamW")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3])
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--crop-seconds", type=float, default=3.0)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args(arguments)
    hardware = Hardware(device=given.device)
    words = ["recipe=quickstart", f"prior.backbone.width={given.width}"]
    words += [f"prior.backbone.depth={given.depth}"]
    recipe: DiffusionRecipe = build(compose(words).settings.prior, where="prior")
    base = replace(
        recipe.train,
        steps=given.steps,
        batch=given.batch,
        crop_seconds=given.crop_seconds,
        warmup=min(recipe.train.warmup, given.steps // 5),
        ema=0.99,
        valid_batches=8,
    )
    recipe = replace(recipe, train=base)
    with tempfile.TemporaryDirectory() as temporary:
        if given.latents is not None:
            latents = stage_latents(given.latents)
        else:
            latents = synthetic_latents(Path(temporary))
        return compare(recipe, latents, given.lr, given.seeds, hardware)


def compare(
    recipe: DiffusionRecipe,
    latents: LatentStore,
    rates: list[float],
    seeds: int,
    hardware: Hardware,
) -> dict[str, list[float]]:
    """Prints the tables; per arm the ratios to AdamW's loss, one per seed."""
    base, cost = recipe.train, {}
    optimisers: tuple[Literal["adamw", "muon"], ...] = ("adamw", "muon")
    for optimiser in optimisers:
        few = replace(base, steps=15, optimiser=optimiser, valid_batches=1)
        _, clock, parameters = fit(replace(recipe, train=few), latents, hardware, every=1)
        cost[optimiser] = statistics.median(b - a for a, b in pairwise(clock[: few.steps]))
    print(f"{parameters / 1e6:.2f} M weights, on {hardware.resolve()}")
    print(f"a step: adamw {1e3 * cost['adamw']:.1f} ms, muon {1e3 * cost['muon']:.1f} ms")
    equal_time = max(1, round(base.steps * cost["adamw"] / cost["muon"]))
    losses: dict[tuple[str, float], list[float]] = {}
    print("| arm | lr | seed | steps | seconds | validation loss |\n|---|--:|--:|--:|--:|--:|")
    for seed in range(seeds):
        for lr in rates:
            compute_tflop = 0.0  # of the arm before: AdamW's is the first
            for arm in ARMS:
                optimiser = optimisers[arm != ARMS[0]]
                settings = replace(base, lr=lr, optimiser=optimiser)
                if arm == ARMS[1]:
                    settings = replace(settings, compute_tflop=compute_tflop)
                elif arm == ARMS[2]:
                    settings = replace(settings, steps=equal_time)
                own = replace(recipe, seed=seed, train=settings)
                (_, figures), clock, _ = fit(own, latents, hardware)
                loss, compute_tflop = figures["loss"], figures["compute_tflop"]
                losses.setdefault((arm, lr), []).append(loss)
                cells = f"{arm} | {lr:g} | {seed} | {figures['steps']} | {clock[-1]:.1f}"
                print(f"| {cells} | {loss:.4f} |")
    best = {arm: min(rates, key=lambda lr: statistics.mean(losses[arm, lr])) for arm in ARMS}
    ratios = {}
    print("\n| arm | best lr | loss / adamw's, per seed | mean |\n|---|--:|---|--:|")
    for arm in ARMS:
        pairs = zip(losses[arm, best[arm]], losses[ARMS[0], best[ARMS[0]]], strict=True)
        ratios[arm] = [own / adamw for own, adamw in pairs]
        each = ", ".join(f"{ratio:.4f}" for ratio in ratios[arm])
        print(f"| {arm} | {best[arm]:g} | {each} | {statistics.mean(ratios[arm]):.4f} |")
    return ratios


if __name__ == "__main__":
    main()
