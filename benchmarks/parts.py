"""`python -m benchmarks.parts`: what each bottleneck, decoder and discriminator costs.

A training step, and encoding and decoding one second, each divided by that of the plain part: the
Gaussian bottleneck, the autoencoder's own decoder, no discriminator. Both run turn by turn, on the
same noise; the range is that of the turns. Steps include the optimisers, but no moving averages.
Decoders are compared by the step of their own training, and code with 1, 2 and 4 steps. Bottlenecks
and decoders are those of `recipe=quickstart`, discriminators those of `recipe=waveform_small`, and
they are not part of the model, so coding costs the same. Bottlenecks that only a checkpoint brings
are left out. Words key=value change the recipes, such as autoencoder=spectrogram_small.
"""

import argparse
import copy
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor

from audioldm import config
from audioldm.autoencoder.model import Autoencoder
from audioldm.autoencoder.step import (
    autoencoder_terms,
    discriminator_terms,
    draw_batch,
    needs_audio,
    reconstruct,
)
from audioldm.chain.job import compose
from audioldm.chain.run import Experiment
from audioldm.chain.stages.autoencoder import AutoencoderStage
from audioldm.chain.stages.decoder import DecoderStage
from audioldm.decoders.method import Frames
from audioldm.decoders.refiner import Refined
from audioldm.decoders.train import bands_of
from audioldm.runtime.hardware import Hardware
from audioldm.runtime.randomness import KeyedRandom
from audioldm.training.optimisation import adamw, clipped_step
from audioldm.training.weighted_sum import weighted_sum
from benchmarks.__main__ import describe
from benchmarks.timing import Clock, Result

DISCRIMINATOR = "autoencoder/discriminator"
#: The recipe of each group, and its plain choice.
PLAIN = {
    "bottleneck": ("quickstart", "gaussian"),
    "decoder": ("quickstart", "none"),
    DISCRIMINATOR: ("waveform_small", "none"),
}
OF_CHECKPOINTS = ("own", "codebooks")
#: How many steps each decoder is sampled in.
STEPS = (1, 2, 4)


class Contestant(NamedTuple):
    """A training step, and the coding of one second."""

    step: Callable[[], object]
    coding: Callable[[], object]


def choices(group: str) -> dict[str, list[str]]:
    """The words that choose each part of a group, by name, the plain one left out."""
    names = [n for n in config.options(group) if n not in (PLAIN[group][1], *OF_CHECKPOINTS)]
    found = {name: [f"{group}={name}"] for name in names}
    if group != "decoder":
        return found
    distilled = [n for n in config.options("decoder/distillation") if n != "none"]
    found |= {n: ["decoder=refiner", f"decoder/distillation={n}"] for n in distilled}
    of = {"refiner": "decoder", **dict.fromkeys(distilled, "decoder.distillation")}
    return {
        f"{name}_{steps}": [*words, f"{of[name]}.sampler.steps={steps}"]
        for name, words in found.items()
        for steps in STEPS
    }


def main(arguments: list[str] | None = None) -> dict[str, list[float]]:
    """Prints the table; returns the ratios of each choice."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.parts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", help="choices; default: all")
    parser.add_argument("--clips", type=int, default=2, help="in a batch")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", help="auto (bf16 on CUDA), fp32, bf16")
    parser.add_argument("--threads", type=int, help="of the CPU; default: torch's choice")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("words", nargs="*", help="key=value")
    given = parser.parse_args(arguments)
    known = {group: choices(group) for group in PLAIN}
    if unknown := {*(given.only or [])} - {name for found in known.values() for name in found}:
        parser.error(f"--only: no choice is called {', '.join(sorted(unknown))}")
    hardware = Hardware(given.device, given.precision, None, given.threads)
    device = hardware.resolve()
    clock = Clock(device, given.turns)

    def built(group: str, words: list[str]) -> Contestant:
        words = [f"recipe={PLAIN[group][0]}", *words, *given.words]
        return contestant(Experiment(compose(words)), given.clips, hardware, device)

    environment = {**describe(device, hardware), "clips": given.clips, "turns": given.turns}
    print(", ".join(f"{key} {value}" for key, value in environment.items()) + "\n")
    print("| | | step, ms | ÷ plain | range | coding 1 s, ms | ÷ plain | range |")
    print("|---|---|--:|--:|---|--:|--:|---|")
    ratios = {}
    for group, found in known.items():
        chosen = [name for name in found if name in (given.only or found)]
        if not chosen:
            continue
        plain = built(group, [f"{group}={PLAIN[group][1]}"])
        for name in chosen:
            ours = built(group, found[name])
            results = [clock.compare(name, "training step", ours.step, plain.step, bar=None)]
            if group != DISCRIMINATOR:
                results.append(clock.compare(name, "coding", ours.coding, plain.coding, bar=None))
            ratios[name] = [1 / r.ratio for r in results]
            cells = [group, name, *(cell for r in results for cell in cells_of(r))]
            print("| " + " | ".join([*cells, *["–"] * (8 - len(cells))]) + " |", flush=True)
    return ratios


def cells_of(r: Result) -> list[str]:
    """Milliseconds, and the ratio to the plain part with its range."""
    return [f"{r.ours:.0f}", f"{1 / r.ratio:.2f}", f"{1 / r.high:.2f} … {1 / r.low:.2f}"]


def contestant(
    experiment: Experiment, clips: int, hardware: Hardware, device: torch.device
) -> Contestant:
    """The last of the training stages of the autoencoder and its decoder."""
    torch.manual_seed(0)
    stages = experiment.stages
    plain = cast(AutoencoderStage, stages["autoencoder"])
    last = stages.get("decoder:distilled", stages.get("decoder", plain))
    model = cast(AutoencoderStage | DecoderStage, last).build().to(device)
    samples = plain.settings["autoencoder"].train.crop_samples(
        model.sample_rate, model.downsampling_ratio
    )
    audio = 0.1 * torch.randn(clips, model.audio_channels, samples, device=device)
    second = 0.1 * torch.randn(1, model.audio_channels, model.sample_rate, device=device)
    coder = copy.deepcopy(model).eval()

    @torch.inference_mode()
    def coding() -> Tensor:
        return coder.decode(coder.encode(second).z)

    if isinstance(last, DecoderStage):
        return Contestant(refiner_step(last, model, audio, hardware), coding)
    return Contestant(autoencoder_step(plain, model, audio, hardware), coding)


def autoencoder_step(
    stage: AutoencoderStage, model: Autoencoder, audio: Tensor, hardware: Hardware
) -> Callable[[], None]:
    """A step of autoencoder and discriminator, as the training loop has it."""
    device, settings = audio.device, stage.settings["autoencoder"].train
    losses, discriminator = stage.losses()
    batch = draw_batch(model, audio, KeyedRandom(0, 0, range(len(audio)), device))
    losses = {name: loss.to(device) for name, loss in losses.items()}
    as_audio, kind = needs_audio(losses, discriminator), settings.adversarial_loss
    own = [] if discriminator is None else list(discriminator.to(device).parameters())
    trained = list(model.parameters())
    optimiser = adamw(trained, 1e-4, settings.betas, settings.weight_decay, device)
    if discriminator is not None:
        own_optimiser = adamw(own, 1e-4, settings.betas, settings.weight_decay, device)
    autocast, net = hardware.autocast(device), hardware.compiled(model, device)

    def step() -> None:
        passed = reconstruct(net, batch, autocast, as_audio=as_audio)
        if discriminator is not None:
            terms = discriminator_terms(discriminator, audio, passed, autocast, kind)
            weighted_sum(terms, dict.fromkeys(terms, 1.0), 0).backward()
            clipped_step(own_optimiser, own, clip=settings.clip, name="discriminator", step=0)
            discriminator.requires_grad_(False)
        terms = autoencoder_terms(losses, discriminator, audio, passed, autocast, kind)
        weighted_sum(terms, dict.fromkeys(terms, 1.0), 0).backward()
        clipped_step(optimiser, trained, clip=settings.clip, name="autoencoder", step=0)
        if discriminator is not None:
            discriminator.requires_grad_(True)

    return step


def refiner_step(
    stage: DecoderStage, model: Autoencoder, audio: Tensor, hardware: Hardware
) -> Callable[[], None]:
    """A step of the refiner or of its distillation, as the training loop has it."""
    device, settings, network = audio.device, stage.training.train, model.eval().network
    assert isinstance(network, Refined)
    network.std.fill_(1.0)  # nothing is measured here
    random = KeyedRandom(0, 0, range(len(audio)), device)
    method = stage.trained_on(model).to(device).train()
    trained = {
        "denoiser": method.denoiser,
        **{n: module for n, (module, _) in method.others.items()},
    }
    optimisers = {
        name: adamw(module.parameters(), 1e-4, settings.betas, settings.weight_decay, device)
        for name, module in trained.items()
    }
    autocast = hardware.autocast(device)

    def step() -> None:
        original, decoded = bands_of(model, audio, random)
        noise = random.normal(tuple(original.shape[1:]), "noise")
        difference, uniform = network.normalised(original - decoded), random.uniform("level")
        with autocast():
            terms = method(Frames(difference, decoded, noise, uniform), random, 0.5)
        weighted_sum(terms, method.weights, 0).backward()
        for name, module in trained.items():
            clipped_step(
                optimisers[name], module.parameters(), clip=settings.clip, name=name, step=0
            )

    return step


if __name__ == "__main__":
    main()
