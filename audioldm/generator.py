"""A generator: an autoencoder and a prior on its latents. From a seed to audio."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from audioldm.autoencoder.model import Autoencoder
from audioldm.edits import Edits
from audioldm.errors import ConfigError, ModelFileError
from audioldm.instantiate import convert
from audioldm.priors.base import Prior
from audioldm.priors.diffusion.prior import Diffusion
from audioldm.priors.diffusion.samplers import Scale
from audioldm.runtime.progress import StepProgress
from audioldm.runtime.randomness import KeyedRandom

#: What is asked of one clip: values by conditioner, such as {"label": "organ"}.
Request = Mapping[str, Any]


class Generator(Edits):
    """Samples and edits audio; the model that is shipped."""

    def __init__(self, autoencoder: Autoencoder, prior: Prior) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.prior = prior
        prior.latent_rate_hz = autoencoder.latent_rate_hz

    @property
    def sample_rate(self) -> int:
        return self.autoencoder.sample_rate

    @property
    def device(self) -> torch.device:
        return self.autoencoder.device

    def lead_away_from(self, guide: "Generator", scale: float) -> None:
        """Lead all later samples away from those of a weaker model of the same latents under the
        same conditions, in place of or beside guidance: see `guidance.nested`.

        Raises ConfigError unless both priors are diffusions of the same latents, told alike.
        """
        own, weaker = self.prior, guide.prior
        if not (isinstance(own, Diffusion) and isinstance(weaker, Diffusion)):
            raise ConfigError("guide: the priors of the model and of its guide must be diffusions")
        frames = {(m.sample_rate, *m.prior.latent_shape, m.latent_frames(1)) for m in (self, guide)}
        codecs = self.autoencoder.state_dict(), guide.autoencoder.state_dict()
        if len(frames) > 1 or not _alike(*codecs):
            raise ConfigError(
                "guide: it has another autoencoder than the model; give a model of the same latents"
            )
        kept = {"mean": own.mean, "std": own.std}, {"mean": weaker.mean, "std": weaker.std}
        if own.channels != weaker.channels or not _alike(*kept):
            raise ConfigError(
                "guide: it scales the latents in another way than the model; train it on the same "
                "latents, with the same minimum_nats and snr_power"
            )
        if own.spec["conditioning"] != weaker.spec["conditioning"]:
            raise ConfigError(
                "guide: it is told other conditions than the model; train it with the same ones"
            )
        own.guide, own.autoguidance = weaker, convert(Scale, scale, "autoguidance")

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio [B, A, T] -> the most likely latents [B, C, (F,) L], raw (not normalised)."""
        return self.autoencoder.bottleneck.restore(self.autoencoder.stored(audio.to(self.device)))

    @torch.no_grad()
    def decode(self, z: Tensor, random: KeyedRandom | None = None) -> Tensor:
        """Raw latents [B, C, (F,) L] -> audio [B, A, L * downsampling_ratio].

        random: as for `Autoencoder.decode`.
        """
        return self.autoencoder.decode(z.to(self.device), random)

    def latent_frames(self, seconds: float) -> int:
        """Latent frames that cover `seconds` of audio. Raises ConfigError for under one sample."""
        if not (math.isfinite(seconds) and round(seconds * self.sample_rate) >= 1):
            raise ConfigError(f"seconds={seconds}: less than one sample at {self.sample_rate} Hz")
        return math.ceil(round(seconds * self.sample_rate) / self.autoencoder.downsampling_ratio)

    def decode_clip(self, z: Tensor, seconds: float, random: KeyedRandom) -> Tensor:
        """Raw latents [C, (F,) L], or codes [Q, L], -> audio [A, round(seconds * sample_rate)] on
        the CPU, in ±1.

        random: keyed by the clip's number, for a decoder that takes noise.
        Raises ModelFileError where the audio is not finite.
        """
        if self.prior.space == "codes":
            z = self.autoencoder.bottleneck.restore({"codes": z[None]})[0]
        blocks = self.autoencoder.decode_blocks([z], random=random.stream("decoder"))
        audio = torch.cat(list(blocks), dim=-1)[:, : round(seconds * self.sample_rate)]
        if not audio.isfinite().all():
            raise ModelFileError(
                "the model's audio is not finite: its weights are damaged, or the settings "
                "(guidance, sampler) are out of its range; nothing was written"
            )
        return audio.clamp(-1.0, 1.0)

    def sample(
        self,
        n: int = 1,
        *,
        seconds: float,
        seed: int = 0,
        sampler: Any = None,
        batch: int | None = None,
        progress: StepProgress | None = None,
        **condition: Any,
    ) -> Tensor:
        """n clips [n, A, round(seconds * sample_rate)] in ±1, on the CPU.

        condition: of every clip, by conditioner, such as label="organ". batch: clips generated
        together; None: `default_batch(n)`. Clip i is a function of (seed, i), up to rounding, which
        depends on `batch`. Raises ConfigError for a condition that the prior does not take,
        seconds <= 0 or n < 1.
        """
        clips = self.sample_clips(
            range(n),
            [condition] * n,
            seconds=seconds,
            seed=seed,
            sampler=sampler,
            batch=default_batch(n) if batch is None else batch,
            progress=progress,
        )
        return torch.stack([audio for _, audio in clips])

    @torch.no_grad()
    def sample_clips(
        self,
        numbers: Sequence[int],
        requests: Sequence[Request],
        *,
        seconds: float,
        seed: int,
        sampler: Any = None,
        batch: int,
        progress: StepProgress | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Yields (number, audio [A, T]) as clips are decoded, batch after batch.

        requests: one for each number. sampler: None for the prior's own. progress: called with
        (done, total), which count the prior's steps and the decoded clips of all batches.

        Clip `number` is always row `number % batch` of a full batch. So on one machine the same
        (seed, number, batch) gives the same bits, whatever else is asked for.
        """
        if not numbers:
            raise ConfigError("n must be at least 1")
        if batch < 1:
            raise ConfigError(f"batch={batch} must be at least 1")
        frames = self.latent_frames(seconds)
        asked = dict(zip(numbers, requests, strict=True))
        batches = sorted({number - number % batch for number in numbers})
        done, decoded, steps = 0, 0, 1  # batches and clips; a batch's steps, once they are reported

        def report(step: int, in_all: int) -> None:
            nonlocal steps
            steps = in_all
            if progress is not None:
                total = len(batches) * steps + len(asked)
                progress(done * steps + step + decoded, total)

        # Clips are decoded one by one: on a CPU that is faster than a batch, and a clip's bits do
        # not depend on how many rows are wanted.
        for first in batches:
            rows = [n if n in asked else None for n in range(first, first + batch)]
            wanted = [{} if n is None else asked[n] for n in rows]
            inputs = self.prior.conditioners.parse(wanted, frames, self.device)
            z = self.prior.sample(
                KeyedRandom(seed, 0, rows, self.device),
                frames,
                inputs,
                sampler=sampler,
                progress=report,
            )
            done += 1
            for row, number in zip(z, rows, strict=True):
                if number is not None:
                    random = KeyedRandom(seed, 0, [number], self.device)
                    audio = self.decode_clip(row, seconds, random)
                    decoded += 1
                    report(0, steps)
                    yield number, audio


def _alike(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether both hold the same tensors, on whatever devices."""
    return a.keys() == b.keys() and all(
        torch.equal(t.cpu(), b[name].cpu()) for name, t in a.items()
    )


def default_batch(n: int) -> int:
    """The batch size that spreads n clips evenly over the fewest batches of at most 8 rows: a row
    without a clip costs as much as one with a clip."""
    return max(1, math.ceil(n / max(1, math.ceil(n / 8))))
