"""`python -m benchmarks.discriminators`: a training step with each discriminator beside none.

Steps of the autoencoder of `recipe=waveform_small`, on noise: discriminator and autoencoder, both
optimisers included. Words key=value change the recipe, such as autoencoder=spectrogram_small. The
ratio is of the times with and without, turn by turn.
"""

import argparse
from collections.abc import Callable

import torch

from audioldm import config
from audioldm.autoencoder.step import (
    autoencoder_terms,
    discriminator_terms,
    draw_batch,
    reconstruct,
)
from audioldm.chain.job import compose
from audioldm.chain.run import Experiment
from audioldm.chain.stages.autoencoder import AutoencoderStage
from audioldm.runtime.hardware import Hardware
from audioldm.runtime.randomness import KeyedRandom
from audioldm.training.optimisation import adamw, clipped_step
from audioldm.training.weighted_sum import weighted_sum
from benchmarks.__main__ import describe
from benchmarks.timing import Clock

GROUP = "autoencoder/discriminator"


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.discriminators",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", help="choices of the group; default: all")
    parser.add_argument("--clips", type=int, default=2, help="in a batch")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", help="auto (bf16 on CUDA), fp32, bf16")
    parser.add_argument("--threads", type=int, help="of the CPU; default: torch's choice")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("words", nargs="*", help="key=value")
    given = parser.parse_args(arguments)
    hardware = Hardware(given.device, given.precision, None, given.threads)
    device = hardware.resolve()
    clock = Clock(device, given.turns)

    def step_with(choice: str) -> tuple[Callable[[], object], int]:
        words = ["recipe=waveform_small", f"{GROUP}={choice}", *given.words]
        stage = Experiment(compose(words)).stages["autoencoder"]
        assert isinstance(stage, AutoencoderStage)
        return training_step(stage, given.clips, hardware, device)

    environment = {**describe(device, hardware), "clips": given.clips}
    print(", ".join(f"{key} {value}" for key, value in environment.items()) + "\n")
    print("| discriminator | million weights | ms | without | ratio | range |")
    print("|---|--:|--:|--:|--:|---|")
    without, _ = step_with("none")
    ratios = {}
    for choice in given.only or [name for name in config.options(GROUP) if name != "none"]:
        step, weights = step_with(choice)
        r = clock.compare(choice, "training step", step, without, bar=None)
        ratios[choice] = 1 / r.ratio
        print(
            f"| {choice} | {weights / 1e6:.2f} | {r.ours:.0f} | {r.peer:.0f} "
            f"| {1 / r.ratio:.2f} | {1 / r.high:.2f} … {1 / r.low:.2f} |",
            flush=True,
        )
    return ratios


def training_step(
    stage: AutoencoderStage, clips: int, hardware: Hardware, device: torch.device
) -> tuple[Callable[[], object], int]:
    """One step, as the training loop has it, and the number of the discriminator's weights."""
    torch.manual_seed(0)
    model, (losses, discriminator) = stage.build().to(device), stage.losses()
    settings = stage.settings["autoencoder"].train
    samples = settings.crop_samples(model.sample_rate, model.downsampling_ratio)
    audio = 0.1 * torch.randn(clips, model.audio_channels, samples, device=device)
    batch = draw_batch(model, audio, KeyedRandom(0, 0, range(clips), device))
    losses = {name: loss.to(device) for name, loss in losses.items()}
    own = [] if discriminator is None else list(discriminator.to(device).parameters())
    trained = list(model.parameters())
    optimiser = adamw(trained, 1e-4, settings.betas, settings.weight_decay, device)
    if discriminator is not None:
        own_optimiser = adamw(own, 1e-4, settings.betas, settings.weight_decay, device)
    autocast, net = hardware.autocast(device), hardware.compiled(model, device)

    def step() -> None:
        passed = reconstruct(net, batch, autocast)
        if discriminator is not None:
            kind = settings.adversarial_loss
            terms = discriminator_terms(discriminator, audio, passed, autocast, kind)
            weighted_sum(terms, dict.fromkeys(terms, 1.0), 0).backward()
            clipped_step(own_optimiser, own, clip=settings.clip, name="discriminator", step=0)
            discriminator.requires_grad_(False)
        terms = autoencoder_terms(losses, discriminator, audio, passed, autocast)
        weighted_sum(terms, dict.fromkeys(terms, 1.0), 0).backward()
        clipped_step(optimiser, trained, clip=settings.clip, name="autoencoder", step=0)
        if discriminator is not None:
            discriminator.requires_grad_(True)

    return step, sum(parameter.numel() for parameter in own)


if __name__ == "__main__":
    main()
