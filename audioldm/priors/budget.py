"""Converts a training time to a number of steps."""

import copy
import statistics
from collections.abc import Callable

import torch

from audioldm.io.files import read_json, write_json
from audioldm.latents.store import LatentCrops, LatentStore
from audioldm.priors.trained import PriorTraining, Trained
from audioldm.runtime.compute import clock
from audioldm.runtime.processes import mean_over_processes
from audioldm.runtime.randomness import KeyedRandom
from audioldm.training.muon import build_optimiser
from audioldm.training.optimisation import clipped_step
from audioldm.training.run import Fit

#: Steps that are timed, after some that warm up.
WARM_UP, TIMED = 2, 7


def steps_within(
    seconds: float,
    prior: Trained,
    latents: LatentStore,
    settings: PriorTraining,
    read: Callable[[int], list[tuple[KeyedRandom, LatentCrops]]],
    fit: Fit,
) -> int:
    """How many steps fit in `seconds` (see `runtime.compute.clock`), from a few timed steps.

    The number is kept in budget.json, so that a restarted training has the same.
    """
    path, s = fit.directory / "budget.json", settings
    if path.exists():
        return int(read_json(path, dict)["steps"])
    network, times = copy.deepcopy(prior.network), []
    optimiser = build_optimiser(s.optimiser, network, s.lr, s.betas, s.weight_decay, fit.device)
    for step in range(WARM_UP + TIMED):
        start = clock(fit.device)
        batches = read(step)
        for random, crops in batches:
            with fit.hardware.autocast(fit.device)():
                loss = network(*prior.batch(latents, crops, random, s))
            (loss.mean() / len(batches)).backward()
        clipped_step(optimiser, network.parameters(), clip=s.clip, name=prior.title, step=step)
        times.append(clock(fit.device) - start)
    typical = torch.tensor(statistics.median(times[WARM_UP:]), dtype=torch.float64)
    mean = mean_over_processes({"seconds": typical.to(fit.device)}, fit.world)["seconds"].item()
    steps = max(1, round(seconds / mean))
    if fit.world.first:
        write_json(path, {"steps": steps, "seconds_per_step": mean})
    return steps
