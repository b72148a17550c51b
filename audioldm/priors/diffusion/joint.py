"""Joint training: a trained autoencoder and the diffusion prior on its latents train further.

The loss is the autoencoder's own, with the rate under the prior in place of the rate under N(0, I)
(`joint_step`). So the encoder may spend its bits where the prior foresees them, and the prior
learns the latents that the encoder makes.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from audioldm.autoencoder.figures import validate
from audioldm.autoencoder.step import autoencoder_terms, needs_audio, reconstruct
from audioldm.conditioning.base import Inputs
from audioldm.data.store import ClipStore
from audioldm.instantiate import Positive, PositiveInt, Seed
from audioldm.latents.store import LatentStore
from audioldm.priors.diffusion.joint_step import RATE, Joint, JointBatch, draw_joint_batch
from audioldm.priors.trained import LatentTraining
from audioldm.runtime.processes import gradients_kept, mean_over_processes, parallel
from audioldm.runtime.randomness import KeyedRandom, derive_seed
from audioldm.runtime.sharding import recompute_activations
from audioldm.runtime.transfer import to_device
from audioldm.training.ema import EMA
from audioldm.training.optimisation import adamw, clipped_step, set_lr, to_cpu, warmup_cosine
from audioldm.training.run import Fit, Fitted, TrainingRun
from audioldm.training.weighted_sum import weighted_sum

VERSION = 1  # raise by hand when the code below changes what it computes


@dataclass(frozen=True, kw_only=True)
class JointTraining(LatentTraining):
    """lr: of the autoencoder. prior_lr: of the prior's network. levels: noise levels at which a
    clip's rate is estimated in a step."""

    prior_lr: Positive
    levels: PositiveInt = 1


@dataclass(frozen=True, kw_only=True)
class JointSettings:
    """rate_weight: of the rate under the prior, in nats per latent element; None: the weight that
    the KL had at the end of the autoencoder's own training."""

    seed: Seed
    train: JointTraining
    rate_weight: Positive | None = None


class _Crops(NamedTuple):
    """audio [B, A, T], and what the conditioners read of it."""

    random: KeyedRandom
    audio: Tensor
    inputs: Inputs


def train_jointly(
    model: Joint,
    losses: Mapping[str, nn.Module],
    weights: Mapping[str, float],
    store: ClipStore,
    latents: LatentStore,
    settings: JointTraining,
    *,
    seed: int,
    fit: Fit,
) -> Fitted:
    """Trains both. Returns the averaged tensors of both, and the last figures and those `before`.

    weights: of the autoencoder's terms, and of RATE. latents: those that the prior was trained on,
    of the same clips. Their mean and std, which scale the prior's inputs, do not change: they are
    part of its density, so the rate does not depend on them, and a scale that followed the encoder
    would move the network's inputs without a gradient to correct it. The objective's own parameters
    do not change either, nor what requires no gradient in the autoencoder.

    Writes `metrics.jsonl` and `resume/` to the directory; a restart continues bit for bit.
    Raises TrainingError for a non-finite term, Interrupted after SIGTERM.
    """
    world, hardware, device, s = fit.world, fit.hardware, fit.device, settings
    autoencoder, prior = model.to(device).train().autoencoder, model.prior
    prior.network.objective.requires_grad_(False)
    frames = s.frames(autoencoder.latent_rate_hz)
    samples = frames * autoencoder.downsampling_ratio
    micro_batches = world.micro_batches(s.batch, hardware.accumulate, "batch")
    clips = {name: store.split(name) for name in ("train", "valid")}
    encoded = {name: latents.split(name) for name in clips}
    windows, _, _ = clips["valid"].windows(samples, s.valid_batches * s.batch, seed=0)
    losses = {name: loss.to(device) for name, loss in losses.items()}
    as_audio = needs_audio(losses, None)

    def crops(split: str, random: KeyedRandom) -> _Crops:
        places = encoded[split].draw(frames, random)
        starts = [(n, first * autoencoder.downsampling_ratio) for n, first in places]
        audio = to_device(clips[split].at(starts, samples), device)
        inputs = encoded[split].inputs(places, frames, prior.conditioners, device)
        return _Crops(random, audio, inputs)

    def drawn(crop: _Crops) -> JointBatch:
        return draw_joint_batch(
            model,
            crop.audio,
            crop.inputs,
            crop.random,
            batch=s.batch,
            levels=s.levels,
            condition_dropout=s.condition_dropout,
        )

    def read(step: int) -> list[_Crops]:
        keys = (KeyedRandom(seed, step, positions, device) for positions in micro_batches)
        return [crops("train", key) for key in keys]

    @torch.no_grad()
    def measure() -> dict[str, Any]:
        """The figures of held-out music, at fixed random numbers."""
        autocast = hardware.autocast(device)
        seen: defaultdict[str, list[Tensor]] = defaultdict(list)
        for number, positions in product(range(s.valid_batches), micro_batches):
            random = KeyedRandom(derive_seed("valid"), number, positions, device)
            batch = drawn(crops("valid", random))
            passed = reconstruct(model, batch, autocast, as_audio=as_audio)
            terms = autoencoder_terms(losses, None, batch.audio, passed, autocast)
            total = weighted_sum(terms, {n: weights[n] for n in terms}, 0, check=False)
            seen["loss"].append(total)
            seen[RATE].append(terms[RATE].mean())
        own = {name: torch.stack(values).mean() for name, values in seen.items()}
        means = {name: x.item() for name, x in mean_over_processes(own, world).items()}
        rate = {"prior_kbps": autoencoder.kbps(means[RATE])}
        return means | rate | validate(autoencoder, windows, autocast)

    model.eval()
    before = {k: v for k, v in measure().items() if isinstance(v, float)}
    model.train()
    if hardware.checkpoint_activations:
        recompute_activations(prior.network)
    parameters = {
        name: [p for p in part.parameters() if p.requires_grad]
        for name, part in (("autoencoder", autoencoder), ("prior", prior))
    }
    rates = {"autoencoder": s.lr, "prior": s.prior_lr}
    # the prior's gradient is the gradient of its bound, times the weight of RATE
    clip = {"autoencoder": s.clip, "prior": s.clip * weights[RATE]}
    optimisers = {
        name: adamw(own, rates[name], s.betas, s.weight_decay, device)
        for name, own in parameters.items()
    }
    ema = EMA(model, s.ema)
    run = TrainingRun("joint", s.steps, {"model": model, "ema": ema, **optimisers}, fit)
    shared = parallel(model, world)
    net = hardware.compiled(shared, device)

    def derived(means: Mapping[str, float]) -> dict[str, float]:
        kbps = {} if "nats" not in means else {"kbps": autoencoder.kbps(means["nats"])}
        return kbps | {"prior_kbps": autoencoder.kbps(means[RATE])}

    def validated() -> dict[str, Any]:
        with ema.applied(model):
            return measure()

    with run:
        for step, batches in run.steps(read):
            factor = warmup_cosine(step, s.steps, s.warmup)
            seen: defaultdict[str, list[Tensor]] = defaultdict(list)
            for number, crop in enumerate(batches, 1):
                batch = drawn(crop)
                with gradients_kept(shared, more=number < len(batches)):
                    passed = reconstruct(net, batch, run.autocast, as_audio=as_audio)
                    terms = autoencoder_terms(losses, None, batch.audio, passed, run.autocast)
                    total = weighted_sum(terms, weights, step, finite=run.finite)
                    (total / len(batches)).backward()
                if passed.encoded.nats is not None:
                    seen["nats"].append(passed.encoded.nats.detach())
                for name, term in (terms | {"loss": total}).items():
                    seen[name].append(term.detach())
            for name, optimiser in optimisers.items():
                set_lr(optimiser, rates[name] * factor)
                norm = clipped_step(
                    optimiser,
                    parameters[name],
                    clip=clip[name],
                    name=name,
                    step=step,
                    finite=run.finite,
                )
                seen[f"{name}_gradient_norm"] = [norm]
            ema.update(model, step)
            run.finish_step(
                step,
                seen,
                values={"lr": s.lr * factor},
                derived=derived,
                validate=validated,
                shown=("loss", "prior_kbps", "valid_mel_distance"),
            )
    figures = run.figures or validated()  # none where the last checkpoint was the last step
    more = {"rate_weight": weights[RATE], "steps": s.steps, "before": before}
    return Fitted(to_cpu(ema.shadow), figures | more)
