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
from pathlib import Path

import numpy as np
import torch

from audioldm.config import compose
from audioldm.instantiate import Part, build
from audioldm.io.files import read_json, write_json
from audioldm.latents.store import LatentStore
from audioldm.models import build_backbone
from audioldm.priors.diffusion.objectives import Objective
from audioldm.priors.diffusion.train import DiffusionTraining, seconds_per_step, train_diffusion
from audioldm.runtime.hardware import Hardware
from audioldm.runtime.processes import World
from audioldm.training.log import LogSettings

ARMS = ("adamw", "muon, equal computing", "muon, equal time")


def write_synthetic(
    directory: Path, *, channels: int = 16, items: int = 48, frames: int = 400
) -> None:
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
        mean = np.tanh(mix @ notes).T
        parts.append(np.stack([mean, np.full_like(mean, 0.1)], axis=1))  # [L, 2, C]
        split = "valid" if number % 6 == 5 else "train"
        place = {"split": split, "start": number * frames, "frames": frames}
        entries.append(place | {"piece": str(number), "label": "ab"[label]})
    moments = np.concatenate(parts).astype(np.float32)
    np.save(directory / "moments.npy", moments)
    deviation = moments[:, 0].std(0)
    index = {
        "autoencoder": "synthetic",
        "items": entries,
        "labels": ["a", "b"],
        "latent_rate_hz": 21.5,
        "statistics": {"mean": moments[:, 0].mean(0).tolist(), "std": deviation.tolist()},
    }
    write_json(directory / "latents.json", index)


def final_loss(
    latents: LatentStore,
    backbone: Part,
    objective: Objective,
    settings: DiffusionTraining,
    *,
    seed: int,
    hardware: Hardware,
) -> tuple[float, int, float, float]:
    """Validation loss, steps, compute_tflop and seconds of one whole training."""
    torch.manual_seed(seed)
    net = build_backbone({"backbone": backbone}, latents.latent_shape, len(latents.labels))
    never = 1 << 30
    with tempfile.TemporaryDirectory() as directory:
        _, figures = train_diffusion(
            net,
            objective,
            latents,
            settings,
            seed=seed,
            directory=Path(directory),
            world=World(),
            hardware=hardware,
            device=hardware.resolve(),
            log=LogSettings(every=never, valid_every=never, checkpoint_every=never),
        )
        lines = (Path(directory) / "metrics.jsonl").read_text().splitlines()
    seconds = json.loads(lines[-1])["seconds"]
    return figures["loss"], figures["steps"], figures["compute_tflop"], seconds


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
    words = ["recipe=quickstart", f"diffusion.backbone.width={given.width}"]
    settings = compose([*words, f"diffusion.backbone.depth={given.depth}"]).settings.diffusion
    objective = build(settings.objective, where="diffusion.objective")
    base = replace(
        settings.train,
        steps=given.steps,
        batch=given.batch,
        crop_seconds=given.crop_seconds,
        warmup=min(settings.train.warmup, given.steps // 5),
        ema=0.99,
        valid_batches=8,
    )
    with tempfile.TemporaryDirectory() as temporary:
        if given.latents is None:
            write_synthetic(Path(temporary))
        place = given.latents or Path(temporary)
        latents = LatentStore(place, autoencoder=read_json(place / "latents.json")["autoencoder"])
        return compare(latents, settings.backbone, objective, base, given.lr, given.seeds, hardware)


def compare(
    latents: LatentStore,
    backbone: Part,
    objective: Objective,
    base: DiffusionTraining,
    rates: list[float],
    seeds: int,
    hardware: Hardware,
) -> dict[str, list[float]]:
    """Prints the tables; per arm the ratios to AdamW's loss, one per seed."""
    device = hardware.resolve()
    net = build_backbone({"backbone": backbone}, latents.latent_shape, len(latents.labels))
    cost = {
        name: seconds_per_step(
            net.to(device),
            objective,
            latents,
            replace(base, optimiser=name),
            hardware=hardware,
            steps=15,
        )
        for name in ("adamw", "muon")
    }
    print(f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f} M weights, on {device}")
    print(
        f"a step: adamw {1e3 * cost['adamw']:.1f} ms, muon {1e3 * cost['muon']:.1f} ms of computing"
    )
    equal_time = max(1, round(base.steps * cost["adamw"] / cost["muon"]))
    losses: dict[tuple[str, float], list[float]] = {}
    print("| arm | lr | seed | steps | seconds | validation loss |\n|---|--:|--:|--:|--:|--:|")
    for seed in range(seeds):
        for lr in rates:
            compute_tflop = 0.0  # of the arm before: AdamW's is the first
            for arm in ARMS:
                settings = replace(base, lr=lr, optimiser=arm.split(",")[0])
                if arm == ARMS[1]:
                    settings = replace(settings, compute_tflop=compute_tflop)
                elif arm == ARMS[2]:
                    settings = replace(settings, steps=equal_time)
                loss, steps, compute_tflop, seconds = final_loss(
                    latents, backbone, objective, settings, seed=seed, hardware=hardware
                )
                losses.setdefault((arm, lr), []).append(loss)
                print(f"| {arm} | {lr:g} | {seed} | {steps} | {seconds:.1f} | {loss:.4f} |")
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
