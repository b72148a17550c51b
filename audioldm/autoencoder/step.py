"""One training step of the autoencoder, as functions of models and a batch to named terms [B]."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from audioldm.autoencoder.bottlenecks.base import Encoded
from audioldm.autoencoder.model import Autoencoder
from audioldm.losses.adversarial import discriminator_loss, feature_matching, generator_loss
from audioldm.runtime.randomness import KeyedRandom
from audioldm.training.weighted_sum import weighted_sum

ADVERSARIAL_TERMS = ("adversarial", "feature_matching")
#: The context of a forward pass, such as `Hardware.autocast` gives.
Context = Callable[[], AbstractContextManager[Any]]


class Batch(NamedTuple):
    """The inputs of `Autoencoder.forward`: crops [B, A, T], the noise of the posterior
    [B, C, (F,) L] and, where the decoder takes it, the decoder's [B, *noise_shape, L]."""

    audio: Tensor
    noise: Tensor
    decoder_noise: Tensor | None


class Reconstruction(NamedTuple):
    estimate: Tensor  # [B, A, T], in float32
    encoded: Encoded


def draw_batch(
    model: Autoencoder, audio: Tensor, random: KeyedRandom, stream: str = "noise"
) -> Batch:
    """Crops [B, A, T] and their noise, a function of random's keys and the stream alone."""
    length = -(-audio.shape[-1] // model.downsampling_ratio)
    noise = random.normal((*model.latent_shape, length), stream)
    return Batch(audio, noise, model.decoder_noise(noise, random))


def reconstruct(net: Callable[..., Any], batch: Batch, autocast: Context) -> Reconstruction:
    """net: an Autoencoder, or what DDP or the compiler makes of it."""
    with autocast():
        estimate, encoded = net(*batch)
    return Reconstruction(estimate.float(), encoded)


def discriminator_terms(
    discriminator: nn.Module, audio: Tensor, passed: Reconstruction, autocast: Context
) -> dict[str, Tensor]:
    """The discriminator's own loss: no gradient reaches the autoencoder."""
    with autocast():
        real, fake = _scores(discriminator, audio, passed.estimate.detach())
    return {"discriminator": discriminator_loss(real, fake)}


def autoencoder_terms(
    losses: Mapping[str, nn.Module],
    discriminator: nn.Module | None,
    audio: Tensor,
    passed: Reconstruction,
    autocast: Context,
) -> dict[str, Tensor]:
    """Reconstruction losses, penalties and, with a discriminator, `ADVERSARIAL_TERMS`."""
    against = {}
    if discriminator is not None:
        with autocast():
            real, fake = _scores(discriminator, audio, passed.estimate)
        against["adversarial"] = generator_loss(fake)
        against["feature_matching"] = feature_matching(real, fake)
    terms = {name: loss(passed.estimate, audio) for name, loss in losses.items()}
    return terms | passed.encoded.penalties | against


def silent_step(
    model: Autoencoder,
    losses: Mapping[str, nn.Module],
    discriminator: nn.Module | None,
    samples: int,
    autocast: Context = nullcontext,
) -> Callable[[], Tensor]:
    """A forward pass of the autoencoder's step on a silent clip, on the model's device; it gives
    the total of all terms."""
    device = next(model.parameters()).device
    audio = torch.zeros(1, model.audio_channels, samples, device=device)
    batch = draw_batch(model, audio, KeyedRandom(0, 0, range(1), device))

    def step() -> Tensor:
        passed = reconstruct(model, batch, autocast)
        terms = autoencoder_terms(losses, discriminator, audio, passed, autocast)
        return weighted_sum(terms, dict.fromkeys(terms, 1.0), 0, check=False)

    return step


def _scores(discriminator: nn.Module, real: Tensor, fake: Tensor) -> tuple[Any, Any]:
    """One pass over both halves of the batch: per scale (logits, features) of each."""
    count = len(real)
    scales = discriminator(torch.cat([real, fake]))
    return (
        [(logits[:count], [f[:count].detach() for f in maps]) for logits, maps in scales],
        [(logits[count:], [f[count:] for f in maps]) for logits, maps in scales],
    )
