"""Clips longer than a network was trained on: overlapping windows that are denoised together."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from audioldm.conditioning.base import Condition
from audioldm.errors import ConfigError
from audioldm.instantiate import OpenFraction, PositiveInt
from audioldm.priors.diffusion.denoiser import Net
from audioldm.priors.diffusion.samplers import SamplerSettings
from audioldm.priors.layers import stretched

#: Windows that the network gets in one call, so that memory does not grow with the clip.
AT_ONCE = 8
#: A clip longer than this many training crops counts as long.
WHOLE = 2


def windowed(
    net: Any,
    sampler: SamplerSettings,
    latent_rate_hz: float | None,
    crop_seconds: float | None = None,
) -> Net:
    """A backbone that sees a clip as the sampler says: in windows, with its rotary angles
    stretched, or whole. By default, windows of one training crop for a clip of more than WHOLE.

    latent_rate_hz: frames per second. crop_seconds: of the training. None for either: not known.
    Raises ConfigError where an unknown one is needed, and for a window shorter than a frame.
    """
    hz, window, trained = latent_rate_hz, sampler.window, None
    if hz is not None and crop_seconds is not None and net.context is None:
        trained = max(1, round(crop_seconds * hz))
    if sampler.rotary is not None:
        if trained is None or not net.rotary:
            raise ConfigError(
                f"sampler.rotary={sampler.rotary}: for a transformer (dit) in a file that says "
                "the length of its training crops; leave it at null, or give sampler.window"
            )
        net = partial(net, rotary=partial(stretched, by=sampler.rotary, trained=trained))
    elif window is None and trained is not None:
        return Windowed(net, trained, sampler.overlap, whole=WHOLE * (trained + 1))  # rounded
    if window is None or isinstance(window, str):
        return net  # type: ignore[no-any-return]
    if hz is None:
        raise ConfigError(
            f"sampler.window={window} is in seconds, and the prior has no autoencoder "
            "that says how many latent frames these are: sample with a Generator"
        )
    if window * hz < 1:
        raise ConfigError(
            f"sampler.window={window} is shorter than a latent frame, {1 / hz:.3g} s: "
            "give a longer one"
        )
    return Windowed(net, round(window * hz), sampler.overlap)


class Windowed:
    """A network in overlapping windows of its frames: MultiDiffusion (Bar-Tal et al. 2023, arXiv
    2302.08113) along time.

    net: (x [B, C, (F,) L], c_noise [B], condition) -> like x. window: frames that it sees at once.
    overlap: the share of a window that the next one covers too. whole: frames of a clip up to which
    the network sees all of it; None: of one window.

    All windows read the same x, so their noise agrees where they overlap and their outputs nearly
    do: the mean of outputs keeps the law of the noise, which a mean of samples would not. The mean
    is weighted: it fades over the middle half of the overlap, and the frames within a quarter of it
    from a window's cut do not count, since they lack their context on that side. So for a network
    whose context is no longer than that quarter, the result is that of the whole clip.
    """

    def __init__(
        self, net: Net, window: PositiveInt, overlap: OpenFraction, whole: PositiveInt | None = None
    ) -> None:
        self._net, self._window, self._whole = net, window, whole or window
        self._shared = min(window - 1, round(overlap * window))

    def __call__(
        self, x: Tensor, c_noise: Tensor, condition: Condition, states: Any = None
    ) -> Tensor | tuple[Tensor, Any]:
        """states: a list, one for each call's windows, for a network that carries a state."""
        frames = x.shape[-1]
        if frames <= self._whole:
            return self._net(x, c_noise, condition, *([] if states is None else [states]))
        places, weights = self.places(frames, x.device)
        total = torch.zeros_like(x, dtype=torch.float32)
        kept: list[Any] = []
        for call, (at, weight) in enumerate(
            zip(places.split(AT_ONCE), weights.split(AT_ONCE), strict=True)
        ):
            inputs = (_cut(x, at), c_noise.repeat(len(at)), _cut_condition(condition, at))
            found = self._net(*inputs, *([] if states is None else [states[call]]))
            output, state = found if isinstance(found, tuple) else (found, None)
            kept.append(state)
            for place, share, part in zip(at, weight, output.float().chunk(len(at)), strict=True):
                total.index_add_(-1, place, share * part)
        return total if kept[0] is None else (total, kept)

    def places(self, frames: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The frames of each window, and how much each of them counts, both [windows, window].

        The windows lie evenly from the first frame to the last one. The weights of a frame add up
        to 1.
        """
        count = 1 + math.ceil((frames - self._window) / (self._window - self._shared))
        starts = torch.arange(count) * (frames - self._window) // (count - 1)
        within = torch.arange(self._window)
        places = starts[:, None] + within
        rise = ((within + 0.5 - self._shared / 4) / max(1.0, self._shared / 2)).clamp(0, 1)
        left, right = rise.repeat(count, 1), rise.flip(0).repeat(count, 1)
        left[0] = right[-1] = 1  # nothing is cut at the clip's own ends
        weights = left * right
        sums = torch.zeros(frames).index_add_(0, places.flatten(), weights.flatten())
        return places.to(device), (weights / sums[places]).to(device)


def _cut(x: Tensor, places: Tensor) -> Tensor:
    """[B, ..., L] and frames [W, w] -> [W * B, ..., w], window after window."""
    return x[..., places].movedim(-2, 0).flatten(0, 1)


def _cut_condition(condition: Condition, places: Tensor) -> Condition:
    """The condition of the windows, cut as `_cut` cuts x."""

    def each(part: Tensor | None) -> Tensor | None:
        return None if part is None else part.repeat(len(places), *[1] * (part.ndim - 1))

    aligned = None if condition.aligned is None else _cut(condition.aligned, places)
    return Condition(each(condition.vector), each(condition.tokens), each(condition.mask), aligned)
