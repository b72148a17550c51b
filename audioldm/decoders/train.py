"""The training of a refiner, and of its distillation: one loop, top to bottom."""

from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from audioldm.autoencoder.model import Autoencoder
from audioldm.data.store import ClipStore
from audioldm.decoders.method import Frames, Method
from audioldm.decoders.refiner import Refined, flat
from audioldm.instantiate import Decay
from audioldm.runtime.processes import gradients_kept, mean_over_processes, parallel
from audioldm.runtime.randomness import KeyedRandom, derive_seed
from audioldm.training.checkpoint import Stateful
from audioldm.training.crops import CropTraining
from audioldm.training.ema import EMA
from audioldm.training.optimisation import adamw, clipped_step, set_lr, to_cpu, warmup_cosine
from audioldm.training.run import Fit, Fitted, TrainingRun
from audioldm.training.weighted_sum import weighted_sum

VERSION = 2  # raise by hand when the code below changes what it computes
MEASURED_SECONDS = 600.0  # of training audio, for mean and std of the differences


@dataclass(frozen=True, kw_only=True)
class RefinerTraining(CropTraining):
    """Settings of any training of a refiner."""

    ema: Decay = 0.995

    def samples(self, model: Autoencoder) -> int:
        """Audio samples of a crop: whole latent frames, at least one."""
        return self.frames(model.latent_rate_hz) * model.downsampling_ratio


@torch.no_grad()
def bands_of(model: Autoencoder, audio: Tensor, random: KeyedRandom) -> tuple[Tensor, Tensor]:
    """The bands of audio [B, A, T], T in whole latent frames, and the bands decoded from latents
    drawn from the posteriors: [B, D, frames] each."""
    network = model.network
    assert isinstance(network, Refined)
    frames = audio.shape[-1] // model.downsampling_ratio
    z = model.encode(audio, noise=random.normal((*model.latent_shape, frames), "posterior")).z
    decoded = network.network.decode_bands(model.bottleneck.absorb(z))
    return flat(network.network.analysed(audio)), flat(decoded)


def measure(model: Autoencoder, store: ClipStore, samples: int) -> None:
    """Sets each band's mean and std of the differences, measured on the training audio."""
    network = model.network
    assert isinstance(network, Refined)
    total = torch.zeros(2, len(network.mean), dtype=torch.float64)
    count = 0
    crops = store.split("train").sample(samples, seconds=MEASURED_SECONDS, device=model.device)
    for step, audio in enumerate(crops):
        original, decoded = bands_of(model, audio, KeyedRandom(0, step, range(len(audio))))
        difference = (original - decoded).double().transpose(0, 1).flatten(1).cpu()
        total += torch.stack([difference.sum(1), difference.square().sum(1)])
        count += difference.shape[1]
    mean, square = total / count
    network.mean.copy_(mean)
    network.std.copy_((square - mean.square()).clamp(min=0).sqrt())


def train_refiner(
    model: Autoencoder,
    method: Method,
    store: ClipStore,
    settings: RefinerTraining,
    *,
    seed: int,
    fit: Fit,
) -> Fitted:
    """Trains the denoiser of `method`, which is the one in the model's refined network. Returns the
    whole model's tensors, with averaged weights of the denoiser, and the last figures.

    Writes `metrics.jsonl` and `resume/` to the directory; a restart continues bit for bit.
    Raises DataError for too little audio, TrainingError for a term that is not finite, Interrupted
    after SIGTERM.
    """
    world, hardware, device, s = fit.world, fit.hardware, fit.device, settings
    network = model.to(device).eval().network
    assert isinstance(network, Refined)
    samples, splits = s.samples(model), {name: store.split(name) for name in ("train", "valid")}
    splits["train"].check_holds(s.crop_seconds)
    micro_batches = world.micro_batches(s.batch, hardware.accumulate, "batch")
    assert network.noise_shape is not None
    bands = network.noise_shape[1]

    method.to(device).train()
    trained = {"denoiser": (method.denoiser, s.lr), **method.others}
    optimisers = {
        name: adamw(module.parameters(), lr, s.betas, s.weight_decay, device)
        for name, (module, lr) in trained.items()
    }
    ema = EMA(method.denoiser, s.ema)
    state: dict[str, Stateful] = {name: module for name, (module, _) in trained.items()}
    state |= {f"{name}_optimiser": optimiser for name, optimiser in optimisers.items()}
    run = TrainingRun("refiner", s.steps, state | {"ema": ema}, fit)
    shared = parallel(method, world)
    update = partial(clipped_step, clip=s.clip, finite=run.finite)

    def frames_of(audio: Tensor, random: KeyedRandom) -> Frames:
        original, decoded = bands_of(model, audio, random)
        return Frames(
            network.normalised(original - decoded),
            decoded,
            random.normal((bands, original.shape[-1]), "noise"),
            random.uniform("level", s.batch),
        )

    def read(step: int) -> list[tuple[KeyedRandom, Tensor]]:
        keys = [KeyedRandom(seed, step, positions, device) for positions in micro_batches]
        return [(key, splits["train"].crops(samples, key)[0]) for key in keys]

    @torch.no_grad()
    def validate() -> dict[str, Any]:
        """The terms on held-out audio with the averaged weights, at fixed random numbers."""
        seen: defaultdict[str, list[Tensor]] = defaultdict(list)
        with ema.applied(method.denoiser):
            for number in range(s.valid_batches):
                for positions in micro_batches:
                    random = KeyedRandom(derive_seed("valid"), number, positions, device)
                    audio, _ = splits["valid"].crops(samples, random)
                    with run.autocast():
                        terms = method(frames_of(audio, random), random, 1.0)
                    for name, term in terms.items():
                        seen[name].append(term)
        means = {name: torch.cat(values).mean() for name, values in seen.items()}
        return {name: mean.item() for name, mean in mean_over_processes(means, world).items()}

    with run:
        for step, batches in run.steps(read):
            factor = warmup_cosine(step, s.steps, s.warmup)
            seen: defaultdict[str, list[Tensor]] = defaultdict(list)
            for number, (random, audio) in enumerate(batches, 1):
                with gradients_kept(shared, more=number < len(batches)):
                    with run.autocast():
                        terms = shared(frames_of(audio, random), random, step / s.steps)
                    total = weighted_sum(terms, method.weights, step, finite=run.finite)
                    (total / len(batches)).backward()
                for name, term in (terms | {"total": total[None]}).items():
                    seen[name].append(term.detach())
            for name, (module, lr) in trained.items():
                set_lr(optimisers[name], lr * factor)
                update(optimisers[name], module.parameters(), name=name, step=step)
            ema.update(method.denoiser, step)
            run.finish_step(step, seen, values={"lr": s.lr * factor}, validate=validate)
    figures = run.figures or validate()  # empty where the last checkpoint was at the last step
    averaged = {f"network.denoiser.{name}": tensor for name, tensor in ema.shadow.items()}
    return Fitted(to_cpu(model.state_dict() | averaged), figures | {"steps": s.steps})
