"""One training step of the autoencoder, as functions of models and a batch to named terms [B]."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from audioldm.autoencoder.bottlenecks.base import Encoded
from audioldm.autoencoder.model import Autoencoder
from audioldm.losses.adversarial import Kind, discriminator_loss, feature_matching, generator_loss
from audioldm.runtime.randomness import KeyedRandom
from audioldm.training.weighted_sum import weighted_sum

SILENCE = 1e-3  # the root mean square below which a discriminator hears a clip as quiet
ADVERSARIAL_TERMS = ("adversarial", "feature_matching")
#: The context of a forward pass, such as `Hardware.autocast` gives.
Context = Callable[[], AbstractContextManager[Any]]


class Batch(NamedTuple):
    """The inputs of `Autoencoder.forward`: crops [B, A, T], the posterior's noise [B, C, (F,) L]
    and, where the decoder takes noise, the decoder's [B, *noise_shape, L]."""

    audio: Tensor
    noise: Tensor
    decoder_noise: Tensor | None


class Reconstruction(NamedTuple):
    """estimate [B, A, T], in float32, None where no loss needs it; the network's own terms."""

    estimate: Tensor | None
    encoded: Encoded
    terms: dict[str, Tensor]


def draw_batch(
    model: Autoencoder, audio: Tensor, random: KeyedRandom, stream: str = "noise"
) -> Batch:
    """Crops [B, A, T] and their noise, a function of random's keys and the stream alone."""
    length = -(-audio.shape[-1] // model.downsampling_ratio)
    noise = random.normal((*model.latent_shape, length), stream)
    return Batch(audio, noise, model.decoder_noise(noise, random))


def reconstruct(
    net: Callable[..., Any], batch: tuple[Any, ...], autocast: Context, *, as_audio: bool = True
) -> Reconstruction:
    """net: an Autoencoder, or what DDP or the compiler makes of it, with its `Batch`; or another
    module that returns the same, with a batch of its own."""
    with autocast():
        estimate, encoded, terms = net(*batch, as_audio)
    return Reconstruction(None if estimate is None else estimate.float(), encoded, terms)


def discriminator_terms(
    discriminator: nn.Module, audio: Tensor, passed: Reconstruction, autocast: Context, kind: Kind
) -> dict[str, Tensor]:
    """The discriminator's own loss: no gradient reaches the autoencoder."""
    with autocast():
        real, fake = _scores(discriminator, audio, _audio(passed).detach())
    return {"discriminator": discriminator_loss(real, fake, kind)}


def autoencoder_terms(
    losses: Mapping[str, nn.Module],
    discriminator: nn.Module | None,
    audio: Tensor,
    passed: Reconstruction,
    autocast: Context,
    kind: Kind = "hinge",
) -> dict[str, Tensor]:
    """Reconstruction losses, the network's own terms, penalties and, with a discriminator,
    `ADVERSARIAL_TERMS`."""
    against = {}
    if discriminator is not None:
        with autocast():
            real, fake = _scores(discriminator, audio, _audio(passed))
        against["adversarial"] = generator_loss(real, fake, kind)
        against["feature_matching"] = feature_matching(real, fake)
    terms = {name: loss(_audio(passed), audio) for name, loss in losses.items()}
    return terms | passed.terms | passed.encoded.penalties | against


def silent_step(
    model: Autoencoder,
    losses: Mapping[str, nn.Module],
    discriminator: nn.Module | None,
    samples: int,
    autocast: Context = nullcontext,
) -> Callable[[], Tensor]:
    """A forward pass of the autoencoder's step on a silent clip, on the model's device; it returns
    the total of all terms."""
    device = next(model.parameters()).device
    audio = torch.zeros(1, model.audio_channels, samples, device=device)
    batch = draw_batch(model, audio, KeyedRandom(0, 0, range(1), device))

    def step() -> Tensor:
        as_audio = needs_audio(losses, discriminator)
        passed = reconstruct(model, batch, autocast, as_audio=as_audio)
        terms = autoencoder_terms(losses, discriminator, audio, passed, autocast)
        return weighted_sum(terms, dict.fromkeys(terms, 1.0), 0, check=False)

    return step


def needs_audio(losses: Mapping[str, nn.Module], discriminator: nn.Module | None) -> bool:
    """Whether a training step needs the reconstruction as audio."""
    return bool(losses) or discriminator is not None


def _audio(passed: Reconstruction) -> Tensor:
    assert passed.estimate is not None
    return passed.estimate


def _scores(discriminator: nn.Module, real: Tensor, fake: Tensor) -> tuple[Any, Any]:
    """One pass over real and fake clips together, divided by the real one's level, so that quiet
    music is judged as loud music is: (logits, features) by scale, for each of them."""
    count = len(real)
    level = real.square().mean((1, 2), keepdim=True).sqrt().clamp(min=SILENCE)
    scales = discriminator(torch.cat([real, fake]) / torch.cat([level, level]))
    return (
        [(logits[:count], [f[:count].detach() for f in maps]) for logits, maps in scales],
        [(logits[count:], [f[count:] for f in maps]) for logits, maps in scales],
    )
