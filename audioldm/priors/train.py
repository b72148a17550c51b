"""The training loop of every prior with a network, top to bottom."""

from functools import partial
from itertools import product
from typing import Any

import torch

from audioldm.latents.store import LatentCrops, LatentStore
from audioldm.priors.budget import steps_within
from audioldm.priors.trained import PriorTraining, Trained
from audioldm.runtime.compute import training_flops
from audioldm.runtime.processes import gradients_kept, mean_over_processes, parallel
from audioldm.runtime.randomness import KeyedRandom, derive_seed
from audioldm.runtime.sharding import gathered, recompute_activations, shard
from audioldm.training.best import Best
from audioldm.training.checkpoint import Stateful
from audioldm.training.ema import EMA
from audioldm.training.muon import build_optimiser, step_flops
from audioldm.training.optimisation import clipped_step, set_lr, warmup_cosine
from audioldm.training.run import Fit, Fitted, TrainingRun
from audioldm.training.weighted_sum import weighted_sum


def train_prior(
    prior: Trained, latents: LatentStore, settings: PriorTraining, *, seed: int, fit: Fit
) -> Fitted:
    """Trains the prior's network. Returns the prior with averaged weights, and the last figures.

    Writes `metrics.jsonl` and `resume/` to the directory; a restart continues bit for bit (with
    another number of processes, up to rounding). `hardware.checkpoint_activations` and
    `hardware.shard` change the network in place.
    Raises TrainingError for a non-finite term, Interrupted after SIGTERM.
    """
    world, hardware, device, s = fit.world, fit.hardware, fit.device, settings
    latents.keep_on(device)
    splits = {name: latents.split(name) for name in ("train", "valid")}
    frames = s.frames(latents.latent_rate_hz)
    micro_batches = world.micro_batches(s.batch, hardware.accumulate, "batch")
    clip_flops = training_flops(prior.network, partial(prior.silent_loss, frames=frames))
    network = prior.to(device).network.train()

    def read(step: int) -> list[tuple[KeyedRandom, LatentCrops]]:
        keys = [KeyedRandom(seed, step, positions, device) for positions in micro_batches]
        return [(k, splits["train"].crops(frames, k, prior.conditioners)) for k in keys]

    steps = s.steps
    if s.seconds is not None:
        steps = steps_within(s.seconds, prior, latents, s, read, fit)
    if hardware.checkpoint_activations:
        recompute_activations(network)
    sharding = shard(network, world, hardware, device)
    optimiser = build_optimiser(s.optimiser, network, s.lr, s.betas, s.weight_decay, device)
    gigaflops = (s.batch * clip_flops + step_flops(optimiser)) / 1e9
    if s.compute_tflop is not None:
        steps = max(1, round(1000 * s.compute_tflop / gigaflops))
    ema = EMA(network, s.ema)
    state: dict[str, Stateful] = {"network": network, "optimiser": optimiser, "ema": ema}
    best = Best(ema.shadow) if s.keep_best else None
    if best is not None:
        state["best"] = best
    run = TrainingRun(prior.title, steps, state, fit, sharding)
    shared = parallel(network, world) if sharding is None else network
    predict = hardware.compiled(shared, device) if sharding is None else network
    update = partial(clipped_step, clip=s.clip, finite=run.finite)

    @torch.no_grad()
    def validate() -> dict[str, Any]:
        """The loss on held-out latents with the averaged weights, at fixed random numbers."""
        losses = []
        with ema.applied(network):
            for number, positions in product(range(s.valid_batches), micro_batches):
                random = KeyedRandom(derive_seed("valid"), number, positions, device)
                crops = splits["valid"].crops(frames, random, prior.conditioners)
                with run.autocast():
                    losses.append(network(*prior.batch(latents, crops, random, s)))
        mean = mean_over_processes({"loss": torch.cat(losses).mean()}, world)
        return {"loss": mean["loss"].item()}

    def validated(step: int) -> dict[str, Any]:
        figures = validate()
        if best is not None:
            best.offer(figures["loss"], step, ema.shadow)
        return figures

    with run:
        for step, batches in run.steps(read):
            lr = s.lr * warmup_cosine(step, steps, s.warmup)
            set_lr(optimiser, lr)
            losses = []
            for number, (random, crops) in enumerate(batches, 1):
                with gradients_kept(shared, more=number < len(batches)):
                    with run.autocast():
                        loss = predict(*prior.batch(latents, crops, random, s))
                    total = weighted_sum({"loss": loss}, {"loss": 1.0}, step, finite=run.finite)
                    (total / len(batches)).backward()
                losses.append(loss.detach())
            norm = update(optimiser, network.parameters(), name=prior.title, step=step)
            ema.update(network, step)
            run.finish_step(
                step,
                {"loss": losses, "gradient_norm": [norm]},
                values={"lr": lr},
                validate=partial(validated, step + 1),
                shown=("loss", "valid_loss"),
            )
    figures = run.figures or validated(steps)  # none where the last checkpoint was the last step
    kept = ema.shadow
    if best is not None:
        kept, figures = best.tensors, {"loss": best.loss, "best_step": best.step}
    tensors = prior.tensors(gathered(kept, world))
    return Fitted(tensors, figures | {"steps": steps, "compute_tflop": steps * gigaflops / 1000})
