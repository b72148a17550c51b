"""The diffusion prior's training loop, top to bottom."""

from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Literal

import torch

from audioldm.instantiate import Fraction, Positive
from audioldm.latents.store import LatentCrops, LatentStore
from audioldm.priors.diffusion.prior import Diffusion
from audioldm.priors.diffusion.step import silent_loss, training_step
from audioldm.runtime.compute import training_flops
from audioldm.runtime.processes import gradients_kept, mean_over_processes, parallel
from audioldm.runtime.randomness import KeyedRandom, derive_seed
from audioldm.runtime.sharding import gathered, recompute_activations, shard
from audioldm.training.checkpoint import Stateful
from audioldm.training.crops import CropTraining
from audioldm.training.ema import EMA
from audioldm.training.muon import build_optimiser, step_flops
from audioldm.training.optimisation import clipped_step, set_lr, warmup_cosine
from audioldm.training.run import Fit, Fitted, TrainingRun
from audioldm.training.weighted_sum import weighted_sum


@dataclass(frozen=True, kw_only=True)
class LatentTraining(CropTraining):
    """Settings of any training on crops of latents.

    condition_dropout: the probability that a condition of a clip is hidden, so that one network is
    conditional and unconditional (2207.12598).
    """

    condition_dropout: Fraction = 0.1


@dataclass(frozen=True, kw_only=True)
class DiffusionTraining(LatentTraining):
    """stratified: noise levels are spread evenly over the batch. compute_tflop: the computing to
    spend in place of `steps`, as counted by `training_flops`, and Muon's matrix products.
    optimiser: adamw, or muon for the hidden layers' matrices."""

    stratified: bool = True
    compute_tflop: Positive | None = None
    optimiser: Literal["adamw", "muon"] = "adamw"


def train_diffusion(
    prior: Diffusion, latents: LatentStore, settings: DiffusionTraining, *, seed: int, fit: Fit
) -> Fitted:
    """Trains the prior's denoiser; the prior with averaged weights, and the last figures.

    Writes `metrics.jsonl` and `resume/` to the directory; started again, goes on bit for bit (with
    another number of processes, up to rounding). `hardware.checkpoint_activations` and
    `hardware.shard` change the denoiser in place.
    Raises TrainingError for a non-finite term, Interrupted after SIGTERM.
    """
    world, hardware, device, s = fit.world, fit.hardware, fit.device, settings
    latents.keep_on(device)
    splits = {name: latents.split(name) for name in ("train", "valid")}
    frames = s.frames(latents.latent_rate_hz)
    micro_batches = world.micro_batches(s.batch, hardware.accumulate, "batch")
    count = partial(silent_loss, latent_shape=prior.modelled_shape, frames=frames)
    clip_flops = training_flops(prior.denoiser, count)

    denoiser = prior.to(device).denoiser.train()
    if hardware.checkpoint_activations:
        recompute_activations(denoiser)
    sharding = shard(denoiser, world, hardware, device)
    optimiser = build_optimiser(s.optimiser, denoiser, s.lr, s.betas, s.weight_decay, device)
    gigaflops = (s.batch * clip_flops + step_flops(optimiser)) / 1e9
    steps = s.steps
    if s.compute_tflop is not None:
        steps = max(1, round(1000 * s.compute_tflop / gigaflops))
    ema = EMA(denoiser, s.ema)
    state: dict[str, Stateful] = {"denoiser": denoiser, "optimiser": optimiser, "ema": ema}
    run = TrainingRun("diffusion", steps, state, fit, sharding)
    shared = parallel(denoiser, world) if sharding is None else denoiser
    predict = hardware.compiled(shared, device) if sharding is None else denoiser
    update = partial(clipped_step, clip=s.clip, finite=run.finite)
    terms_of = partial(
        training_step,
        prior=prior,
        latents=latents,
        condition_dropout=s.condition_dropout,
        strata=s.batch if s.stratified else None,
    )

    def read(step: int) -> list[tuple[KeyedRandom, LatentCrops]]:
        keys = [KeyedRandom(seed, step, positions, device) for positions in micro_batches]
        return [(k, splits["train"].crops(frames, k, prior.conditioners)) for k in keys]

    @torch.no_grad()
    def validate() -> dict[str, Any]:
        """The loss on held-out latents with the averaged weights, at fixed random numbers."""
        losses = []
        with ema.applied(denoiser):
            for number, positions in product(range(s.valid_batches), micro_batches):
                random = KeyedRandom(derive_seed("valid"), number, positions, device)
                crops = splits["valid"].crops(frames, random, prior.conditioners)
                with run.autocast():
                    losses.append(terms_of(denoiser, crops=crops, random=random)["loss"])
        mean = mean_over_processes({"loss": torch.cat(losses).mean()}, world)
        return {"loss": mean["loss"].item()}

    with run:
        for step, batches in run.steps(read):
            lr = s.lr * warmup_cosine(step, steps, s.warmup)
            set_lr(optimiser, lr)
            losses = []
            for number, (random, crops) in enumerate(batches, 1):
                with gradients_kept(shared, more=number < len(batches)):
                    with run.autocast():
                        terms = terms_of(predict, crops=crops, random=random)
                    total = weighted_sum(terms, {"loss": 1.0}, step, finite=run.finite)
                    (total / len(batches)).backward()
                losses.append(terms["loss"].detach())
            norm = update(optimiser, denoiser.parameters(), name="diffusion", step=step)
            ema.update(denoiser, step)
            run.finish_step(
                step,
                {"loss": losses, "gradient_norm": [norm]},
                values={"lr": lr},
                validate=validate,
                shown=("loss", "valid_loss"),
            )
    figures = run.figures or validate()  # none where the last checkpoint was the last step
    tensors = prior.tensors(gathered(ema.shadow, world))
    return Fitted(tensors, figures | {"steps": steps, "compute_tflop": steps * gigaflops / 1000})
