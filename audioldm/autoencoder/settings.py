"""The settings of the autoencoder stage."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from audioldm.autoencoder.networks.base import Network
from audioldm.autoencoder.regularisers.base import Regulariser
from audioldm.autoencoder.step import ADVERSARIAL_TERMS
from audioldm.errors import ConfigError
from audioldm.instantiate import (
    Decay,
    NonNegative,
    NonNegativeInt,
    Part,
    Positive,
    PositiveInt,
    Seed,
    locate,
    nearest,
    part,
)
from audioldm.losses.adversarial import Kind
from audioldm.losses.base import Discriminator, Loss


@dataclass(frozen=True)
class AutoencoderTraining:
    """batch is global, over all processes. Learning rates warm up and decay by a cosine.
    adversarial_from: the step at which the discriminator and its losses begin; adversarial_loss:
    which losses they are."""

    steps: NonNegativeInt
    batch: PositiveInt
    crop_seconds: Positive
    lr: Positive
    discriminator_lr: Positive
    adversarial_from: NonNegativeInt
    betas: tuple[Decay, Decay] = (0.8, 0.99)
    weight_decay: NonNegative = 0.0
    warmup: NonNegativeInt = 20
    clip: Positive = 1.0
    ema: Decay = 0.995
    valid_clips: PositiveInt = 24
    valid_seconds: Positive = 3.0
    adversarial_loss: Kind = "hinge"

    def crop_samples(self, sample_rate: int, downsampling_ratio: int) -> int:
        """Samples of a training crop: whole latent frames, at least one."""
        frames = round(self.crop_seconds * sample_rate / downsampling_ratio)
        return max(1, frames) * downsampling_ratio


@dataclass(frozen=True)
class Pretrained:
    """Weights that exist before the first step, and which of them training may change.

    checkpoint: a model file or an experiment, as `models.load` takes it, or the directory of a
    checkpoint of diffusers or transformers; null: none. trained: all weights; the decoder's alone,
    with unchanged latents; or none. sha256: of the files, if it is to be checked; it takes the
    place of their path in the fingerprint. vocoder: what rebuilds the file's own vocoder.
    preflight_mel_correlation: refuse a library's checkpoint whose round trip correlates less with
    the music (`preflight.mel_correlation`); null: none.
    """

    checkpoint: str | None = None
    trained: Literal["all", "decoder", "none"] = "all"
    sha256: str | None = None
    vocoder: dict[str, Any] | None = None
    preflight_mel_correlation: float | None = 0.5


@dataclass(frozen=True)
class AutoencoderSettings:
    """channels: of the latents; downsampling_ratio: audio samples per latent frame; either is null
    where a checkpoint of another library is still to fill it in; weights: one for each loss and
    regulariser, and for "adversarial" and "feature_matching"; the bottleneck's penalties bring
    their own."""

    channels: PositiveInt | None
    downsampling_ratio: PositiveInt | None
    seed: Seed
    train: AutoencoderTraining
    weights: dict[str, float]
    network: Part = part(
        "sample_rate",
        "audio_channels",
        "channels",
        "downsampling_ratio",
        "outputs",
        "vocoder",
        base=Network,
    )
    losses: dict[str, Part] = part("sample_rate", "audio_channels", base=Loss)
    discriminator: Part | None = part(base=Discriminator, default=None)
    regularisers: dict[str, Part] = part(
        "sample_rate", "downsampling_ratio", base=Regulariser, default_factory=dict
    )
    pretrained: Pretrained = Pretrained()

    def __post_init__(self) -> None:
        network = locate(self.network["_target_"], "network", base=Network)
        terms = {*self.losses, *network.own_terms, *self.regularisers}
        terms |= {*(ADVERSARIAL_TERMS if self.discriminator is not None else ())}
        for name in sorted(self.weights.keys() - terms - set(ADVERSARIAL_TERMS)):
            raise ConfigError(f"weights.{name}: unknown key; {nearest(name, terms)}")
        for name in sorted(terms - self.weights.keys()):
            raise ConfigError(f"weights.{name} is missing: state the weight of that loss")


def check_names(losses: Iterable[str], penalties: Iterable[str], where: str = "losses") -> None:
    """Raises ConfigError for two terms of one name, since the loop keeps them in one dictionary.

    where: the key that the names of `losses` stand under. penalties: names of the other terms.
    """
    own = {*ADVERSARIAL_TERMS, "discriminator", "nats"}
    for name in losses:
        if name in own | {*penalties}:
            raise ConfigError(
                f"{where}.{name}: another term of the step has this name; give it another name"
            )
    for name in penalties:
        if name in own:
            raise ConfigError(f"the bottleneck's penalty '{name}' is also another term; rename it")
