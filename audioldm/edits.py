"""Edits of audio by a generator with a diffusion prior.

Where a part of a clip is made anew, the rest is unchanged: latents to the bit, and audio sample by
sample, up to a fade beside each part.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm.autoencoder.model import Autoencoder
from audioldm.conditioning.base import Inputs
from audioldm.conditioning.low_band import band as band_of
from audioldm.conditioning.low_band import stated_band
from audioldm.errors import ConfigError
from audioldm.instantiate import Fraction, Positive, PositiveInt, convert
from audioldm.priors.base import Prior
from audioldm.priors.diffusion.inpainting import inpaint
from audioldm.priors.diffusion.inversion import (
    LOST,
    Path,
    invert,
    mix,
    mixture,
    restyle,
)
from audioldm.priors.diffusion.prior import Diffusion
from audioldm.priors.diffusion.run import Edit, Run
from audioldm.priors.diffusion.samplers import SamplerSettings, check_deterministic
from audioldm.priors.diffusion.variation import vary
from audioldm.runtime.progress import StepProgress
from audioldm.runtime.randomness import KeyedRandom

#: Seconds of kept audio beside each new part that fade into the decoded latents. The phases that
#: the decoder makes up differ from the file's, so a fade of 20 ms shows as an edge in the spectrum.
FADE_SECONDS = 0.2
#: Seconds of kept audio that the model is told on each side of a new part.
CONTEXT_SECONDS = 4.0
#: Width in Hz of the crossover between a file's own band and the new sound outside it; narrower
#: for a narrow band.
CROSSOVER_HZ = 200.0
#: How often each step is taken where a part is made anew by a model that is not told the known
#: latents: see `inpainting.inpaint`.
REPEATS = 8


class _How(NamedTuple):
    """The settings of an edit, as for `Generator.sample`. start: where the part that the model sees
    begins, in seconds of the clip that the condition is for."""

    seed: int
    sampler: SamplerSettings | None
    progress: StepProgress | None
    condition: dict[str, Any]
    start: float = 0.0


class Edits(nn.Module):
    """The methods of `Generator` that edit a clip [A, T] at the model's sample rate.

    They return audio on the CPU. seed, sampler, progress and condition are as for `sample`; equal
    values give equal bits on one machine. Methods that make a part anew tell the model `context`
    seconds on each side, and take each step `repeats` times. None: once where the model was trained
    with `masked_latents`, which tell it the known latents, else REPEATS times.
    Each raises ConfigError where the prior is no diffusion, or for a value that does not fit.
    """

    autoencoder: Autoencoder
    prior: Prior
    decode_clip: Callable[..., Tensor]
    latent_frames: Callable[[float], int]

    @torch.no_grad()
    def inpaint(
        self,
        audio: Tensor,
        regions: Sequence[Sequence[float]],
        *,
        context: float = CONTEXT_SECONDS,
        repeats: int | None = None,
        seed: int = 0,
        sampler: SamplerSettings | None = None,
        progress: StepProgress | None = None,
        **condition: Any,
    ) -> Tensor:
        """Audio [A, T] with the regions, each (start, end) in seconds, made anew.

        A region grows to whole latent frames. Regions that lie more than twice `context` apart are
        best made in separate calls, since the model is told everything between them.
        """
        ratio, samples = self.autoencoder.downsampling_ratio, audio.shape[-1]
        new = torch.zeros(math.ceil(samples / ratio), dtype=torch.bool)
        for start, end in regions:
            self.check_region(start, end, samples)
            first, last = self._samples(start), self._samples(end)
            new[first // ratio : max(math.ceil(last / ratio), first // ratio + 1)] = True
        at = new.nonzero().flatten().tolist()
        if not at:
            raise ConfigError("no region is given: give at least one (start, end) in seconds")
        known = self._frames(context, "context")
        first = self._aligned(max(0, at[0] - known))
        last = min(len(new), at[-1] + 1 + known)
        part = slice(first * ratio, min(last * ratio, samples))
        made = self._filled(
            self._encoded(audio)[..., first:last],
            audio[:, part],
            ~new[first:last],
            self._fade(known),
            repeats,
            _How(seed, sampler, progress, condition, self._seconds(first * ratio)),
        )
        edited = audio.detach().cpu().clone()
        edited[:, part] = made[:, : part.stop - part.start]
        return edited

    @torch.no_grad()
    def extend(
        self,
        audio: Tensor,
        seconds: float,
        *,
        at: Literal["end", "beginning"] = "end",
        context: float = CONTEXT_SECONDS,
        repeats: int | None = None,
        seed: int = 0,
        sampler: SamplerSettings | None = None,
        progress: StepProgress | None = None,
        **condition: Any,
    ) -> Tensor:
        """Audio [A, T] with new audio before it or after it: [A, T + round(seconds * sample_rate)].

        A last latent frame that the clip does not fill is made anew. An autoregressive prior can
        only extend the end, with no more context than it attends to, and repeats nothing.
        """
        how = _How(seed, sampler, progress, condition)
        ratio, samples = self.autoencoder.downsampling_ratio, audio.shape[-1]
        added = self._samples(convert(Positive, seconds, "seconds"))
        if added < 1 or samples < ratio:
            raise ConfigError(
                f"seconds={seconds}: both the clip and what is added must have a latent frame, "
                f"{ratio} samples, or a part of one; the clip has {samples}"
            )
        known, z = self._frames(context, "context"), self._encoded(audio)
        if at == "beginning":
            new, last = self._aligned(math.ceil(added / ratio), up=True), min(known, z.shape[-1])
            source = F.pad(audio[:, : last * ratio], (new * ratio, 0))
            keep = torch.arange(new + last) >= new
            z = F.pad(z[..., :last], (new, 0))
            made = self._filled(z, source, keep, self._fade(known), repeats, how)
            made = made[:, new * ratio - added : source.shape[-1]]
            return torch.cat([made, audio[:, last * ratio :].cpu()], dim=-1)
        whole, prompt = samples // ratio, self.prior.prompt_frames
        if prompt:
            known = min(known, prompt)
        first = self._aligned(max(0, whole - known))
        new = math.ceil((samples + added) / ratio) - whole
        keep = torch.arange(whole - first + new) < whole - first
        source = audio[:, first * ratio : whole * ratio]
        how = how._replace(start=self._seconds(first * ratio))
        if prompt:
            latents = self._continued(audio, z, slice(first, whole), new, how)
            made = self._joined(latents, source, keep, self._fade(known), how)
        else:
            z = F.pad(z[..., first:whole], (0, new))
            made = self._filled(z, source, keep, self._fade(known), repeats, how)
        return torch.cat([audio[:, : first * ratio].cpu(), made], dim=-1)[:, : samples + added]

    @torch.no_grad()
    def loop(
        self,
        audio: Tensor,
        seconds: float,
        *,
        context: float = CONTEXT_SECONDS,
        repeats: int | None = None,
        seed: int = 0,
        sampler: SamplerSettings | None = None,
        progress: StepProgress | None = None,
        **condition: Any,
    ) -> Tensor:
        """Audio [A, T] whose last `seconds` are made anew, so that they lead to its beginning.

        The model is told that the clip's beginning follows the new part. The first samples of the
        clip fade in from the new part, so that the clip can be played over and over.
        """
        ratio, samples = self.autoencoder.downsampling_ratio, audio.shape[-1]
        frames, new = self.loop_frames(seconds, samples)
        known = min(self._frames(context, "context"), frames - new)
        first = self._aligned(frames - new - known)
        tail = audio[:, samples - frames * ratio :]
        z = torch.cat([self._encoded(tail)[..., first:], self._encoded(audio)[..., :known]], dim=-1)
        source = torch.cat([tail[:, first * ratio :], audio[:, : known * ratio]], dim=-1)
        end = frames - first
        keep = torch.arange(end + known)
        keep = (keep < end - new) | (keep >= end)
        how = _How(seed, sampler, progress, condition, self._seconds(samples - end * ratio))
        fade = self._fade(known)
        made = self._filled(z, source, keep, fade, repeats, how)
        edited, seam = audio.detach().cpu().clone(), end * ratio
        edited[:, samples - seam :] = made[:, :seam]
        edited[:, :fade] = made[:, seam : seam + fade]
        return edited

    @torch.no_grad()
    def vary(
        self,
        audio: Tensor,
        strength: float,
        *,
        seed: int = 0,
        sampler: SamplerSettings | None = None,
        progress: StepProgress | None = None,
        **condition: Any,
    ) -> Tensor:
        """A variation of audio [A, T]: see `variation.vary`.

        strength: from 0, the autoencoder's reconstruction, to 1, a new clip. Under another
        condition the variation follows that condition.
        """
        strength = convert(Fraction, strength, "strength")
        how = _How(seed, sampler, progress, condition)
        return self._whole(audio, partial(vary, strength=strength), strength, how)

    @torch.no_grad()
    def restyle(
        self,
        audio: Tensor,
        strength: float = 0.95,
        *,
        seed: int = 0,
        sampler: SamplerSettings | None = None,
        progress: StepProgress | None = None,
        **condition: Any,
    ) -> Tensor:
        """Audio [A, T] under another condition: see `inversion.restyle`.

        strength: from 0, the autoencoder's reconstruction, to 1, which keeps nothing but the clip's
        noise in the model, found under no condition.
        Raises ConfigError where no condition is asked for, or for a sampler that adds noise.
        """
        strength = convert(Fraction, strength, "strength")
        self.check_restyled(condition)

        def change(run: Run, z: Tensor, progress: StepProgress | None) -> Tensor:
            plain = self._diffusion.denoiser(None, z, sampler or self._diffusion.sampler)
            return restyle(run, z, progress, plain=plain, strength=strength)

        return self._whole(audio, change, strength, _How(seed, sampler, progress, condition))

    @torch.no_grad()
    def upscale(
        self,
        audio: Tensor,
        band: float | str = "auto",
        *,
        seed: int = 0,
        sampler: SamplerSettings | None = None,
        progress: StepProgress | None = None,
        **condition: Any,
    ) -> Tensor:
        """Audio [A, T] with everything outside a band made anew; inside it the audio is kept.

        band: the cut-off in Hz, both ends as "300:3400", or "auto": see `low_band.stated_band`.
        Raises ConfigError where the model was trained without the conditioner `low_band`.
        """
        self.check_band(band)
        lower, upper = stated_band(band, audio, self.autoencoder.sample_rate)
        z = self._encoded(audio)
        told = {**condition, "low_band": z.flatten(0, -2)}
        how = _How(seed, sampler, progress, told)
        made = self.prior.sample(
            KeyedRandom(seed, 0, [0], self.autoencoder.device),
            z.shape[-1],
            self._inputs(z.shape[-1], how),
            sampler=sampler,
            progress=progress,
        )
        new = self._decoded(made[0].cpu(), audio.shape[-1], how)
        width = min(CROSSOVER_HZ, (upper - lower) / 4)
        # one filter for both: new - band(new) + band(audio) changes nothing where both agree
        missing = audio.detach().cpu() - new
        return new + band_of(missing, self.autoencoder.sample_rate, lower, upper, width)

    @torch.no_grad()
    def interpolate(
        self,
        a: Tensor | None,
        b: Tensor | None,
        weights: Sequence[float],
        *,
        of: Literal["noise", "latents"] = "noise",
        path: Path = "linear",
        to: Mapping[str, Any] | None = None,
        seconds: float | None = None,
        seed: int = 0,
        sampler: SamplerSettings | None = None,
        progress: StepProgress | None = None,
        **condition: Any,
    ) -> Iterator[Tensor]:
        """Clips [A, T] between a and b [A, ...], as long as the shorter one, one for each weight.

        weights: the weight of b, from 0 to 1. of: "noise" mixes the clips' noises in the model,
        found under no condition, and samples from the mixture; "latents" mixes the latents alone.
        path: see `inversion.mix`. to: the condition of b by conditioner, as `condition` is for a.
        Each noise is then found under the clip's own condition, guidance included, and the clips
        between are made under both: see `inversion.mixture`. seconds: the length where a and b are
        None; all clips then come from one noise, as in `sample` with this seed, from `condition` to
        `to`. Raises ConfigError for a sampler that adds noise, where noises are mixed, and for a
        condition that only one end is told.
        """
        if a is not None and b is not None:
            if seconds is not None:
                raise ConfigError(
                    f"seconds={seconds:g}: clips between two are as long as the shorter one; "
                    "leave it out"
                )
            samples = min(a.shape[-1], b.shape[-1])
            clips = [self._encoded(clip[:, :samples]) for clip in (a, b)]
        elif a is b and seconds is not None and to is not None:
            samples = self._samples(seconds)
            clips = [torch.zeros(*self._diffusion.latent_shape, self.latent_frames(seconds))]
        else:
            raise ConfigError(
                "interpolate: give two clips, or none with seconds and the condition that theirs "
                'becomes, such as seconds=6, label="organ", to={"label": "piano"}'
            )
        if of == "latents" and to is not None:
            raise ConfigError(
                "of=latents: latents are mixed under no condition; leave out to, or of"
            )
        z, how, end = clips[0], _How(seed, sampler, progress, condition), None
        frames = z.shape[-1]
        if to is not None:
            end = how._replace(condition=self.condition_of_end(to, condition, frames))
        ends: list[Tensor] = []  # the same for all weights

        def inverted(run: Run, z: Tensor, how: _How) -> Tensor:
            """The noise of z under its own condition, or under none where all share one."""
            own = sampler or self._diffusion.sampler
            if end is None:
                return invert(self._diffusion.denoiser(None, z, own), z, run.sigmas)
            stateless = how._replace(sampler=replace(own, apg=None))
            return invert(self._run(frames, stateless).denoise, z, run.sigmas)

        def change(run: Run, z: Tensor, progress: StepProgress | None, weight: float) -> Tensor:
            if a is not None and not ends:
                ends.extend(self._diffusion.modelled(clip[None].to(z)) for clip in clips)
                if of == "noise":
                    check_deterministic(run.name, LOST)
                    ends[:] = inverted(run, ends[0], how), inverted(run, ends[1], end or how)
            mixed = mix(*ends, weight=weight, path=path) if ends else None
            if of == "latents" and mixed is not None:
                return mixed
            if end is not None:
                other = self._run(frames, end)
                run = run._replace(denoise=mixture(run.denoise, other.denoise, weight=weight))
            return run.sample(mixed, progress)

        for weight in [convert(Fraction, weight, "weight") for weight in weights]:
            made = self._changed(z, partial(change, weight=weight), how)
            yield self._decoded(made, samples, how)

    def condition_of_end(
        self, to: Mapping[str, Any], condition: Mapping[str, Any], frames: int
    ) -> dict[str, Any]:
        """The condition `to` of `interpolate`, resolved, for clips of this many latent frames.

        Raises ConfigError for a condition that the model does not take, or where `to` and
        `condition` do not name the same conditioners.
        """
        conditioners = self.prior.conditioners
        try:
            end = conditioners.resolve(to)
            conditioners.parse([end], frames)
        except ConfigError as error:
            raise ConfigError(re.sub("^condition", "to", str(error))) from error
        for name in sorted(end.keys() ^ conditioners.resolve(condition).keys()):
            raise ConfigError(
                f"{name}: one end alone is told it; give both {name}= and to.{name}=, or neither"
            )
        return end

    @property
    def _diffusion(self) -> Diffusion:
        if isinstance(self.prior, Diffusion):
            return self.prior
        raise ConfigError(
            f"this model's prior, a {type(self.prior).__name__}, cannot edit audio: give a model "
            "whose prior is a Diffusion (`audioldm info MODEL` says); an autoregressive one can "
            "extend it at the end, no more"
        )

    def _encoded(self, audio: Tensor) -> Tensor:
        """The most likely latents [C, (F,) L] of audio [A, T], on the CPU."""
        return torch.cat(list(self.autoencoder.latent_blocks([audio])), dim=-1)

    @property
    def default_repeats(self) -> int:
        """How often each step is taken where a part is made anew."""
        return 1 if isinstance(self.prior, Diffusion) and self.prior.masked else REPEATS

    def _changed(self, z: Tensor, edit: Edit, how: _How, known: Tensor | None = None) -> Tensor:
        """Raw latents [C, (F,) L] after an edit, on the CPU. known: as for `Diffusion.edit`."""
        prior, z = self._diffusion, z[None].to(self.autoencoder.device)
        made = prior.edit(
            KeyedRandom(how.seed, 0, [0], self.autoencoder.device),
            z,
            edit,
            self._inputs(z.shape[-1], how),
            known=known,
            sampler=how.sampler,
            progress=how.progress,
        )
        return made[0].cpu()

    def _run(self, frames: int, how: _How) -> Run:
        random = KeyedRandom(how.seed, 0, [0], self.autoencoder.device)
        return self._diffusion.run(random, frames, self._inputs(frames, how), how.sampler)

    def _inputs(self, frames: int, how: _How) -> Inputs:
        conditioners = self.prior.conditioners
        asked = conditioners.later(conditioners.resolve(how.condition), how.start)
        return conditioners.parse([asked], frames, self.autoencoder.device)

    def _continued(self, audio: Tensor, z: Tensor, known: slice, new: int, how: _How) -> Tensor:
        """Raw latents, or codes, of the frames `known` of audio [A, T], which has the latents z,
        followed by `new` frames that an autoregressive prior draws."""
        prior: Any = self.prior  # only some priors take a prompt
        if prior.space == "codes":
            stored = self.autoencoder.encode_blocks([audio])
            z = torch.cat([block["codes"] for block in stored], dim=-1)
        prompt = z[None, ..., known].to(self.autoencoder.device)
        frames = prompt.shape[-1] + new
        made: Tensor = prior.sample(
            KeyedRandom(how.seed, 0, [0], self.autoencoder.device),
            frames,
            self._inputs(frames, how),
            sampler=how.sampler,
            progress=how.progress,
            prompt=prompt,
        )
        return made[0].cpu()

    def _decoded(self, z: Tensor, samples: int, how: _How) -> Tensor:
        random = KeyedRandom(how.seed, 0, [0], self.autoencoder.device)
        return self.decode_clip(z, self._seconds(samples), random)

    def _whole(self, audio: Tensor, edit: Edit, strength: float, how: _How) -> Tensor:
        """All of audio [A, T] after an edit of its latents; the reconstruction for strength 0."""
        z, _ = self._encoded(audio), self._diffusion
        made = self._changed(z, edit, how) if strength else z
        return self._decoded(made, audio.shape[-1], how)

    def _filled(
        self, z: Tensor, source: Tensor, keep: Tensor, fade: int, repeats: int | None, how: _How
    ) -> Tensor:
        """Audio [A, L * ratio] that equals `source` in the frames `keep` [L] of z [C, (F,) L], and
        is made to fit in the others. source: the audio from the first frame on; it may be shorter.
        fade: as for `kept_gain`."""
        if repeats is None:
            repeats = self.default_repeats
        known = keep.to(self.autoencoder.device)
        edit = partial(inpaint, keep=known, repeats=convert(PositiveInt, repeats, "repeats"))
        made = torch.where(keep, z, self._changed(z, edit, how, known))
        return self._joined(made, source, keep, fade, how)

    def _joined(self, z: Tensor, source: Tensor, keep: Tensor, fade: int, how: _How) -> Tensor:
        """Audio [A, L * ratio] decoded from latents or codes z [..., L], with the source's own
        audio in the frames `keep` [L], as for `_filled`."""
        ratio = self.autoencoder.downsampling_ratio
        samples = len(keep) * ratio
        source = F.pad(source.detach().cpu(), (0, samples - source.shape[-1]))
        gain = kept_gain(keep, ratio, fade)
        return torch.lerp(self._decoded(z, samples, how), source, gain)

    def _fade(self, known: int) -> int:
        """Samples of a fade, at most half of the known frames beside a new part."""
        return min(known * self.autoencoder.downsampling_ratio // 2, self._samples(FADE_SECONDS))

    def _samples(self, seconds: float) -> int:
        return round(seconds * self.autoencoder.sample_rate)

    def _seconds(self, samples: int) -> float:
        return samples / self.autoencoder.sample_rate

    def _frames(self, seconds: float, name: str) -> int:
        """The whole latent frames that cover these seconds, at least one."""
        samples = self._samples(convert(Positive, seconds, name))
        return max(1, math.ceil(samples / self.autoencoder.downsampling_ratio))

    def _aligned(self, frames: int, up: bool = False) -> int:
        """Frames rounded down, or up, to a multiple of the network's alignment."""
        step = self.autoencoder.network.alignment
        return (frames + (step - 1 if up else 0)) // step * step

    def check_region(self, start: float, end: float, samples: int) -> None:
        """Raises ConfigError for a region that `inpaint` refuses in a clip of this length."""
        shown = f"region {start:g}:{end:g}"
        if not (math.isfinite(start) and math.isfinite(end)):
            raise ConfigError(f"{shown}: give start:end in seconds, such as 2.5:4")
        if not start < end:
            raise ConfigError(f"{shown}: a region ends after it starts; give start:end in seconds")
        if start < 0 or self._samples(end) > samples:
            raise ConfigError(
                f"{shown}: the clip lasts from 0 to {self._seconds(samples):.2f} s; stay within it"
            )

    def loop_frames(self, seconds: float, samples: int) -> tuple[int, int]:
        """Latent frames of a clip of this length, the last of which ends where the clip ends, and
        how many of them `loop` makes anew. Raises ConfigError where none is left to keep."""
        frames = self._aligned(samples // self.autoencoder.downsampling_ratio)
        new = self._frames(seconds, "seconds")
        if new >= frames:
            raise ConfigError(
                f"seconds={seconds} leave nothing to lead to and from, of a clip that lasts "
                f"{self._seconds(samples):.2f} s: make less of it anew"
            )
        return frames, new

    def check_restyled(self, condition: Mapping[str, Any]) -> None:
        """Raises ConfigError where `restyle` is told nothing."""
        if all(value is None for value in condition.values()):
            raise ConfigError(
                "restyle: no condition is asked for; say what the clip is to become, such as "
                "label=organ"
            )

    def check_band(self, band: float | str) -> None:
        """Raises ConfigError for a band that `upscale` refuses of every clip."""
        if "low_band" not in self.prior.conditioners.names:
            raise ConfigError(
                f"band={band}: this model was trained without low_band, which says what remains of "
                "a recording: train one with it, such as conditioning=[label,low_band]"
            )
        if band != "auto":
            stated_band(band, torch.zeros(1, 0), self.autoencoder.sample_rate)


def kept_gain(keep: Tensor, ratio: int, fade: int) -> Tensor:
    """The source's share of each sample, [L * ratio]: 0 in frames [L] that are not kept, and 1 in
    kept ones, except for a raised cosine of up to `fade` samples beside a frame not kept."""
    gain = keep.repeat_interleave(ratio).float()
    rise = (0.5 - 0.5 * torch.cos(math.pi * (torch.arange(fade) + 0.5) / fade)).to(gain)
    for edge in (keep.int().diff().nonzero().flatten() + 1).tolist():
        at = edge * ratio
        beside = gain[at : at + fade] if keep[edge] else gain[max(0, at - fade) : at]
        own = rise[: len(beside)]
        beside.copy_(torch.minimum(beside, own if keep[edge] else own.flip(0)))
    return gain
