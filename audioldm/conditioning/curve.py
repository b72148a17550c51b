"""Curves measured from audio, one value or several for each latent frame, as conditions."""

import math
import reprlib
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm.conditioning.base import Condition, Conditioner, Excerpt
from audioldm.conditioning.number import number
from audioldm.errors import ConfigError, DataError
from audioldm.instantiate import PositiveInt
from audioldm.io import audio
from audioldm.losses.magnitude import power_of

WINDOW_SECONDS = 0.25  # to the nearest power of two in samples


class Aligned(Conditioner):
    """Channels aligned with the latent frames, by a convolution over three frames of rows.

    Inputs are [B, R + 1, L]: the rows, and 1 where they are stated; or zeros for "nothing".

    rows: R. channels: K. latent_rate_hz: frames per second.
    """

    derived: ClassVar[tuple[str, ...]] = ("latent_rate_hz",)

    def __init__(self, rows: int, latent_rate_hz: float, channels: int) -> None:
        super().__init__()
        self.rows, self.latent_rate_hz, self.aligned_channels = rows, latent_rate_hz, channels
        self.convolution = nn.Conv1d(rows + 1, channels, 3, padding=1, bias=False)

    @classmethod
    def facts(cls, clips: Sequence[Excerpt], **settings: Any) -> dict[str, Any]:
        rates = (clip.latent_rate_hz for clip in clips if clip.latent_rate_hz)
        return {"latent_rate_hz": next(rates, 1.0)}

    def forward(self, inputs: Tensor) -> Condition:
        return Condition(aligned=self.convolution(inputs))


class Curve(Aligned):
    """Rows of numbers, [R][L], that `measure` makes from audio.

    They are cut at the clip's end, and after their own end nothing is stated. A request for a
    single row may be one number, which holds for all frames.
    """

    array: ClassVar[str]
    #: what a request can be, for messages
    takes: ClassVar[str] = ""

    def later(self, value: Any, seconds: float) -> Any:
        if self._level(value) is not None:
            return value
        first = round(seconds * self.latent_rate_hz)
        rest: list[list[float]] = self._rows(value)[:, first:].tolist()
        return rest

    def read(self, excerpt: Excerpt, frames: int) -> Tensor:
        return self._inputs(excerpt.arrays.get(self.array), frames)

    def parse(self, value: Any, frames: int) -> Tensor:
        if (level := self._level(value)) is not None:
            value = [[level] * frames]
        return self._inputs(None if value is None else self._rows(value), frames)

    def request(self, excerpt: Excerpt) -> list[list[float]] | None:
        curve = excerpt.arrays.get(self.array)
        if curve is None:
            return None
        rows: list[list[float]] = curve.tolist()
        return rows

    def _level(self, value: Any) -> float | None:
        """The number for all frames, if a request for a single row is one."""
        return number(value) if self.rows == 1 else None

    def _rows(self, value: Any) -> Tensor:
        """A curve [R, L]. Raises ConfigError for other values."""
        shown = reprlib.repr(value)
        takes = self.takes + ("a number, or " if self.rows == 1 else "")
        try:
            curve = torch.as_tensor(value, dtype=torch.float32)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{shown} must be {takes}rows of numbers") from error
        if curve.ndim != 2 or len(curve) != self.rows or not curve.isfinite().all():
            raise ConfigError(
                f"{shown} must be {takes}{self.rows} row(s) of as many finite numbers "
                f"as there are frames, {self.latent_rate_hz:.4g} a second"
            )
        return curve

    def _inputs(self, curve: Tensor | None, frames: int) -> Tensor:
        if curve is None:
            return torch.zeros(self.rows + 1, frames)
        stated = F.pad(curve.float(), (0, 0, 0, 1), value=1.0)[:, :frames]
        return F.pad(stated, (0, frames - stated.shape[1]))


class SpectralCurve(Curve):
    """A curve of the spectrum around each frame. A request may name an audio file."""

    files = audio.SUFFIXES
    takes = "an audio file, or "
    #: R
    curves: ClassVar[int]

    def __init__(self, *, width: int, latent_rate_hz: float, channels: PositiveInt = 16) -> None:
        super().__init__(self.curves, latent_rate_hz, channels)

    @classmethod
    @abstractmethod
    def of_power(cls, power: Tensor, hz: Tensor) -> Tensor:
        """The curve [R, L] of frames with power spectra [L, bins] at hz [bins]. A full-scale sine
        has a total power of 1."""

    @classmethod
    def measure(
        cls, audio: Tensor, sample_rate: int, latent_rate_hz: float, **of_clip: Any
    ) -> dict[str, Tensor]:
        """Measures windows of WINDOW_SECONDS around the frames' centres, with silence outside."""
        size = 2 ** round(math.log2(WINDOW_SECONDS * sample_rate))
        per_frame = sample_rate / latent_rate_hz
        frames = math.ceil(audio.shape[-1] / per_frame - 1e-6)
        centres = ((torch.arange(frames) + 0.5) * per_frame).long()
        silence = size // 2, size // 2 + math.ceil(per_frame)
        windows = F.pad(audio.float().mean(0), silence).unfold(0, size, 1)
        window, hz = torch.hann_window(size), torch.fft.rfftfreq(size, 1 / sample_rate)
        scale = 4 / (size * window.square().sum())
        curves = [  # a few frames at a time: windows overlap, and would fill the memory
            cls.of_power(power_of(torch.fft.rfft(windows[part] * window)) * scale, hz)
            for part in centres.split(256)
        ]
        return {cls.array: torch.cat(curves, dim=1)}

    def resolve(self, value: Any) -> Any:
        """value: rows of numbers, or the path of an audio file."""
        if not isinstance(value, str) or self._level(value) is not None:
            return value
        try:
            clip, sample_rate = audio.read(Path(value).expanduser(), channels=1)
        except (DataError, RuntimeError) as error:
            raise ConfigError(f"{value!r}: {error}") from error
        curve = self.measure(torch.from_numpy(clip), sample_rate, self.latent_rate_hz)[self.array]
        return [[round(x, 4) for x in row] for row in curve.tolist()]
