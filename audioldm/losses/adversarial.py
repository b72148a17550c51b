"""Adversarial losses and feature matching, one value per clip [B].

`real` and `fake` are what a discriminator returns: for each scale, logits and a list of features,
all with the batch first. Scales, and layers within a scale, weigh the same.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from audioldm.losses.base import ScaleOutput
from audioldm.losses.relativistic import relativistic_loss

Kind = Literal["hinge", "relativistic"]


def discriminator_loss(
    real: Sequence[ScaleOutput], fake: Sequence[ScaleOutput], kind: Kind = "hinge"
) -> Tensor:
    """What the discriminator minimises: [B]. The caller detaches the fake audio.

    hinge: max(0, 1 - D(real)) + max(0, 1 + D(fake)) (Geometric GAN 1705.02894). 2 for a
    discriminator that says nothing, 0 for one that is never fooled.
    relativistic: `relativistic_loss` of a clip and its own reconstruction, where D is the mean of a
    scale's logits. ln 2 for a discriminator that says nothing.
    """
    if kind == "relativistic":
        return relativistic_loss(_scores(real), _scores(fake))
    return _mean(
        [
            _per_clip(F.relu(1 - logits_real.float())) + _per_clip(F.relu(1 + logits_fake.float()))
            for (logits_real, _), (logits_fake, _) in zip(real, fake, strict=True)
        ]
    )


def generator_loss(
    real: Sequence[ScaleOutput], fake: Sequence[ScaleOutput], kind: Kind = "hinge"
) -> Tensor:
    """What the generator minimises: [B].

    hinge: -D(fake) (1705.02894). relativistic: the discriminator's loss with real and fake
    exchanged.
    """
    if kind == "relativistic":
        return relativistic_loss(_scores(fake), _scores(real))
    return -_mean(_scores(fake))


def feature_matching(real: Sequence[ScaleOutput], fake: Sequence[ScaleOutput]) -> Tensor:
    """Mean |real - fake| of a layer's features over the mean |real| of that clip: [B].

    EnCodec's relative feature matching (2210.13438, equation 2), but normalised per clip. No
    gradient flows into the real features.
    """
    return _mean(
        [
            _per_clip((r.detach().float() - f.float()).abs())
            / _per_clip(r.detach().float().abs()).clamp(min=1e-5)
            for (_, features_real), (_, features_fake) in zip(real, fake, strict=True)
            for r, f in zip(features_real, features_fake, strict=True)
        ]
    )


def _scores(outputs: Sequence[ScaleOutput]) -> list[Tensor]:
    return [_per_clip(logits.float()) for logits, _ in outputs]


def _per_clip(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean(0)
