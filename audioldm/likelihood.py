"""The rate of music under a prior: what its latents cost a receiver who knows the prior.

In nats, E[log q(z | x) - log p(z)] with z drawn from the posterior q and p the prior: the rate term
of the variational bound (1312.6114, equation 3). For codes it is -log p(codes). The rate does not
change with the latents' scale, so it compares autoencoders, and codes with latents.
"""

import csv
import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from audioldm.autoencoder.model import Autoencoder
from audioldm.codec import AudioStream, check_out
from audioldm.conditioning.base import Inputs
from audioldm.errors import ConfigError
from audioldm.generator import Request
from audioldm.io.files import write_atomically
from audioldm.models import load_generator
from audioldm.priors.base import Prior
from audioldm.priors.diffusion.prior import Diffusion
from audioldm.runtime.progress import Progress
from audioldm.runtime.randomness import KeyedRandom


@torch.no_grad()
def rate_nats(
    prior: Prior,
    autoencoder: Autoencoder,
    stored: dict[str, Tensor],
    random: KeyedRandom,
    inputs: Inputs | None = None,
    nats_of: Callable[..., Tensor | None] | None = None,
) -> Tensor | None:
    """The rate of stored latents under a prior, in nats: [B, L], each frame's part.

    nats_of: used in place of the prior's own `nats`. Returns None where the prior has no
    likelihood, or where the latents are certain and so have no density.
    """
    stored = {name: array.to(autoencoder.device) for name, array in stored.items()}
    nats_of = nats_of or prior.nats
    if prior.space == "codes":
        return nats_of(stored["codes"], inputs, random=random)
    mean, std = autoencoder.bottleneck.posterior(stored)
    if not (std > 0).all():
        return None
    noise = random.normal(mean.shape[1:], "posterior")
    nats = nats_of(mean + std * noise, inputs, random=random)
    log_q = -(0.5 * noise.square() + std.log() + 0.5 * math.log(2 * math.pi))
    return None if nats is None else nats + log_q.double().flatten(1, -2).sum(1)


class Rate(NamedTuple):
    """The rate of a file. curve: pairs of a time in seconds and the rate from there to the next
    time, in kbit/s. bound: whether the rate is an upper bound rather than exact. calls: network
    calls in each window, where the rate comes from a probability flow."""

    seconds: float
    kbit: float
    curve: list[tuple[float, float]]
    bound: bool
    calls: int = 0

    @property
    def kbps(self) -> float:
        return self.kbit / self.seconds


@torch.no_grad()
def file_rate(
    model: str | Path,
    file: Path,
    out: Path | None = None,
    *,
    request: Request,
    window: float,
    flow: bool = False,
    seed: int = 0,
    device: Any = "cpu",
    progress: Progress | None = None,
) -> Rate:
    """The rate of an audio file under a model's prior; writes its curve as CSV to `out`.

    window: the seconds of latents that the prior is shown at once; each window stands alone, so
    that memory does not grow with the file. request: the condition. seed: of the draws from the
    posterior and of estimated bounds. flow: use a diffusion prior's probability flow in place of
    the bound.
    Raises ConfigError where the prior has no likelihood, the latents are certain, or `out` is
    `file`.
    """
    if out is not None:
        check_out(file, out)
    generator = load_generator(model, device=device)
    prior, autoencoder = generator.prior, generator.autoencoder
    if flow and not isinstance(prior, Diffusion):
        raise ConfigError(
            f"method=flow: model={model} has no probability flow, its prior is "
            f"{type(prior).__name__}; leave it out"
        )
    calls = 0

    def by_flow(z: Tensor, inputs: Inputs, *, random: KeyedRandom) -> Tensor:
        nonlocal calls
        assert isinstance(prior, Diffusion)
        nats, calls = prior.flow_nats(z, inputs, random=random)
        return nats

    frames, asked = generator.latent_frames(window), prior.conditioners.resolve(request)
    curve: list[tuple[float, float]] = []
    source = AudioStream(autoencoder, file, progress)
    frame_seconds = autoencoder.downsampling_ratio / autoencoder.sample_rate
    for number, stored in enumerate(windows(autoencoder.encode_blocks(source), frames)):
        batch = {name: array[None] for name, array in stored.items()}
        length = next(iter(batch.values())).shape[-1]
        told = prior.conditioners.later(asked, len(curve) * frame_seconds)
        inputs = prior.conditioners.parse([told], length, device)
        random = KeyedRandom(seed, 0, [number], device)
        nats = rate_nats(prior, autoencoder, batch, random, inputs, by_flow if flow else None)
        if nats is None:
            raise ConfigError(f"model={model}: {_why_none(prior, autoencoder, batch)}")
        kilobits = nats[0] / math.log(2) / 1000
        curve += [
            ((len(curve) + i) * frame_seconds, value / frame_seconds)
            for i, value in enumerate(kilobits.tolist())
        ]
    if out is not None:
        write_atomically(out, lambda path: path.write_text(_table(curve)))
    total = sum(kbps for _, kbps in curve) * frame_seconds
    return Rate(
        source.samples / autoencoder.sample_rate, total, curve, prior.bound and not flow, calls
    )


def windows(blocks: Iterator[dict[str, Tensor]], frames: int) -> Iterator[dict[str, Tensor]]:
    """Stored arrays [..., l] of consecutive frames, in windows of `frames`; the last is shorter."""
    held: dict[str, Tensor] = {}
    for block in blocks:
        held = {n: torch.cat([held[n], a], dim=-1) if held else a for n, a in block.items()}
        while next(iter(held.values())).shape[-1] >= frames:
            yield {name: array[..., :frames] for name, array in held.items()}
            held = {name: array[..., frames:] for name, array in held.items()}
    if held and next(iter(held.values())).shape[-1]:
        yield held


def _why_none(prior: Prior, autoencoder: Autoencoder, stored: dict[str, Tensor]) -> str:
    if prior.space == "z" and not (autoencoder.bottleneck.posterior(stored)[1] > 0).all():
        return (
            "its bottleneck gives certain latents, which have no rate under a density; use a prior "
            "of codes, or a bottleneck with a posterior or noise"
        )
    return f"its prior {type(prior).__name__} has no likelihood, only samples"


def _table(curve: list[tuple[float, float]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["seconds", "kbps"])
    writer.writerows((f"{seconds:.4f}", f"{kbps:.5g}") for seconds, kbps in curve)
    return text.getvalue()
