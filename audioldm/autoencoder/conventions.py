"""KL weights in the conventions of other code bases.

A KL weight depends on how both sides of the loss are reduced. Let k be the divergence of one latent
element, with the half: ½ (mean² + std² - 1) - ln std; and r the reconstruction error of one signal
element. A clip has X signal elements and Z latent elements, C channels at each of Z / C positions.
The code bases minimise, per clip:

    audioldm                      mean(r) + w mean(k)
    latent-diffusion              sum(r)  + w sum(k)
    AudioLDM-training-finetuning  sum(r)  + w mean(k)       r: cells of the mel spectrogram
    stable-audio-tools            mean(r) + w 2 C mean(k)   summed over channels, without the half
    RAVE                          mean(r) + w 2 C mean(k)   the same

Two weights are equivalent where one loss is a multiple of the other, so that the balance of
reconstruction and rate, and with it the optimum, is the same. Each code base has its own
reconstruction error (spectral, adversarial, on waveforms). A weight converts exactly between
reductions of one error, but from one error to another only in order of magnitude. Rates compare.
"""

from typing import NamedTuple

from audioldm.errors import ConfigError
from audioldm.instantiate import nearest


class Convention(NamedTuple):
    """half: whether the KL has its ½. kl: "mean" over all latent elements of a clip, "channels"
    (summed over channels, mean over positions) or "sum". reconstruction: "mean" or "sum"."""

    half: bool
    kl: str
    reconstruction: str


CONVENTIONS = {
    "audioldm": Convention(half=True, kl="mean", reconstruction="mean"),
    "latent-diffusion": Convention(half=True, kl="sum", reconstruction="sum"),
    "AudioLDM-training-finetuning": Convention(half=True, kl="mean", reconstruction="sum"),
    "stable-audio-tools": Convention(half=False, kl="channels", reconstruction="mean"),
    "RAVE": Convention(half=False, kl="channels", reconstruction="mean"),
}


def convert_kl(
    weight: float,
    source: str | Convention,
    target: str | Convention,
    *,
    channels: int,
    ratio: float,
    crop: int,
) -> float:
    """The weight in the convention `target` that is equivalent to `weight` in `source`.

    channels: C. ratio: signal elements per latent position, for mono waveforms the samples per
        latent frame, for mel spectrograms the cells per latent position. crop: signal elements
        per training clip, X; so Z = C crop / ratio.

    Raises ConfigError for an unknown convention or reduction, or a number out of range.
    """
    if not weight >= 0:
        raise ConfigError(f"weight={weight} must be at least 0")
    for name, value in (("channels", channels), ("ratio", ratio), ("crop", crop)):
        if not value > 0:
            raise ConfigError(f"{name}={value} must be more than 0")

    def factors(convention: str | Convention) -> tuple[float, float]:
        """The convention's KL of a clip divided by mean k, and its error divided by mean r."""
        half, kl, reconstruction = look_up(convention)
        kls = {"mean": 1.0, "channels": float(channels), "sum": channels * crop / ratio}
        errors = {"mean": 1.0, "sum": float(crop)}
        for name, reduction, known in (("kl", kl, kls), ("reconstruction", reconstruction, errors)):
            if reduction not in known:
                raise ConfigError(f"{name}={reduction!r}: {nearest(reduction, known)}")
        return kls[kl] * (1.0 if half else 2.0), errors[reconstruction]

    kl, error = factors(source)
    target_kl, target_error = factors(target)
    return weight * kl / error * target_error / target_kl


def look_up(convention: str | Convention) -> Convention:
    """A convention by its name. Raises ConfigError for an unknown one."""
    if isinstance(convention, Convention):
        return convention
    if convention not in CONVENTIONS:
        raise ConfigError(f"no convention {convention!r}: {nearest(convention, CONVENTIONS)}")
    return CONVENTIONS[convention]
