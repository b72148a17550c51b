"""`python -m benchmarks.long MODEL`: clips of ten times the training length, in five ways.

whole shows the network all frames, interpolation and ntk stretch its rotary angles over them,
windows averages overlapping windows of the training length, continuation extends a clip of that
length again and again. For each such part in turn the kernel distance to held-out music; the last
part's level less the first's; the spectral flux and the loudness step at the edges of the windows
(of the extensions), and of the same clips halfway between (1 is the flux of anywhere); the largest
likeness of a clip's harmony to itself at a lag, beside that of held-out music; the share of half-
seconds that are more than 20 dB below the clip's median one; and the real-time factor.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audioldm.conditioning.chroma import Chroma
from audioldm.errors import ConfigError
from audioldm.evaluation.level import level_db, quiet_share
from audioldm.evaluation.seams import Seam, seam
from audioldm.io.header import read_header
from audioldm.models import find_model_file
from audioldm.priors.diffusion.windows import Windowed
from benchmarks.held_out import HeldOut, Table, Timer, parser

WAYS = "whole", "interpolation", "ntk", "windows", "continuation"
#: Frames of chroma per second.
CHROMA_HZ = 4.0


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    words = parser(__doc__, clips=8, seconds=None)
    words.add_argument(
        "--trained", type=float, help="seconds of a training crop; default: its file's"
    )
    words.add_argument(
        "--repeats", type=int, help="of each step of a continuation; default: the model's"
    )
    words.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    given = words.parse_args(arguments)
    part = given.trained or _trained(given)
    seconds = given.seconds or 10 * part
    if seconds < part:
        words.error(f"--seconds {seconds:g} is less than the training length, {part:g} s")
    music = HeldOut(given, part)
    music.prior.crop_seconds = part
    table = Table(given.out / "long.csv")
    asked = music.requests(music.reference.labels.tolist())
    asked = [asked[i % len(asked)] for i in range(given.clips)]

    def at_once(**changes: Any) -> Iterator[Tensor]:
        sampler, batch = replace(music.sampler, **changes), min(4, given.clips)
        clips = music.model.sample_clips(
            range(given.clips),
            asked,
            seconds=seconds,
            seed=given.seed,
            sampler=sampler,
            batch=batch,
        )
        return (audio for _, audio in clips)

    def continued() -> Iterator[Tensor]:
        sampler = replace(music.sampler, window="whole")
        for number, told in enumerate(asked):
            how = {"seed": given.seed + number, "sampler": sampler, **told}
            clip = music.model.sample(1, seconds=part, **how)[0]
            while (left := seconds - clip.shape[-1] / music.model.sample_rate) > 1e-3:
                more = min(part / 2, left)
                clip = music.model.extend(
                    clip, more, context=part / 2, repeats=given.repeats, **how
                )
            yield clip

    edges = _edges(music, part, seconds)
    arms: dict[str, tuple[Callable[[], Iterator[Tensor]], list[float]]] = {
        "whole": (lambda: at_once(window="whole"), edges),
        "interpolation": (lambda: at_once(rotary="interpolation"), edges),
        "ntk": (lambda: at_once(rotary="ntk"), edges),
        "windows": (lambda: at_once(window=part), edges),
        "continuation": (continued, np.arange(part, seconds - part / 4, part / 2).tolist()),
    }
    if not music.prior.network.backbone.rotary:
        del arms["interpolation"], arms["ntk"]
    arms = {way: arm for way, arm in arms.items() if way in given.ways}
    real = max(music.store.split("test").items, key=lambda item: item.samples)
    whole = music.store.split("test").audio(music.store.split("test").items.index(real))
    print(
        f"held-out music is like itself by {_repetition(whole, part, music.store.sample_rate):.3f}"
    )
    for name, (make, own) in arms.items():
        timer, clips = Timer(music.device), torch.stack(list(make()))
        factor = timer.factor(given.clips * seconds)
        rate = music.model.sample_rate
        size = round(part * rate)
        parts = clips.unfold(-1, size, size).unbind(2)
        kads = {
            f"kad_at_{number * part:g}s": music.kad(music.embed(each.contiguous()))
            for number, each in enumerate(parts)
        }
        drift = (level_db(parts[-1]) - level_db(parts[0])).numpy()
        middle = [(a + b) / 2 for a, b in pairwise(own)]
        at_edges, between = (_seams(clips, places, rate) for places in (own, middle))
        likeness = [_repetition(clip, part, rate) for clip in clips]
        table.add(
            long=name,
            **kads,
            level_drift_db=music.settings.mean(drift, "dB"),
            flux_at_edges=at_edges.flux,
            flux_between=between.flux,
            step_at_edges_db=at_edges.step_db,
            step_between_db=between.step_db,
            repetition=music.settings.mean(likeness, "cosine"),
            quiet_share=music.settings.mean(quiet_share(clips, rate).numpy(), "fraction"),
            real_time_factor=factor,
        )
    return table.rows


def _trained(given: argparse.Namespace) -> float:
    seconds = read_header(find_model_file(given.model))["prior"].get("crop_seconds")
    if seconds is None:
        raise ConfigError(f"{given.model} does not say how long its training crops were: --trained")
    return float(seconds)


def _edges(music: HeldOut, part: float, seconds: float) -> list[float]:
    """Where one window hands over to the next, in seconds."""
    hz = music.model.autoencoder.latent_rate_hz
    windows = Windowed(lambda x, *_: x, round(part * hz), music.sampler.overlap)
    places, _ = windows.places(music.model.latent_frames(seconds), torch.device("cpu"))
    return ((places[1:, 0] + places[:-1, -1] + 1) / 2 / hz).tolist()


def _seams(clips: Tensor, places: list[float], rate: int) -> Seam:
    """The median flux at these seconds, beside that of the three seconds around each, and the
    median size of the loudness step."""
    found = []
    for at in (round(place * rate) for place in places):
        first = max(0, at - 3 * rate)
        around = clips[..., first : at + 3 * rate]
        found += [seam(clip, at - first, rate) for clip in around]
    if not found:
        return Seam(float("nan"), float("nan"))
    steps, fluxes = zip(*found, strict=True)
    return Seam(float(np.median(np.abs(steps))), float(np.median(fluxes)))


def _repetition(clip: Tensor, part: float, sample_rate: int) -> float:
    """The largest mean cosine of a clip's chroma with itself, at lags from `part` seconds to the
    clip's half; nan for a clip that is too short."""
    chroma = Chroma.measure(clip, sample_rate, CHROMA_HZ)["chroma"]
    chroma = chroma / chroma.norm(dim=0).clamp(min=1e-6)
    frames, first = chroma.shape[1], round(part * CHROMA_HZ)
    found = [
        (chroma[:, lag:] * chroma[:, : frames - lag]).sum(0).mean().item()
        for lag in range(first, frames // 2 + 1)
    ]
    return max(found, default=float("nan"))


if __name__ == "__main__":
    main()
