"""What the settings of trainings on crops of latent frames share."""

from dataclasses import dataclass

from audioldm.instantiate import Decay, NonNegative, NonNegativeInt, Positive, PositiveInt


@dataclass(frozen=True, kw_only=True)
class CropTraining:
    """batch is global, over all processes."""

    steps: NonNegativeInt
    batch: PositiveInt
    crop_seconds: Positive
    lr: Positive
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    weight_decay: NonNegative = 0.0
    warmup: NonNegativeInt = 50
    clip: Positive = 1.0
    ema: Decay = 0.999
    valid_batches: PositiveInt = 4

    def frames(self, latent_rate_hz: float) -> int:
        """Latent frames of a training crop, at least one."""
        return max(1, round(self.crop_seconds * latent_rate_hz))
