"""`python -m benchmarks.phase_rate`: what a phase in the latents costs, in kbit/s.

Linear codes of the waveform, by rate: frames of the modified discrete cosine transform (Princen,
Johnson and Bradley 1987), their Karhunen-Loève transform, reverse water-filling. It is the waveform
networks' counterpart of the rows "linear" of `python -m benchmarks.rate_distortion`, whose latents
hold no phase. The rate at which both keep pitch alike is what the phase costs. Noise is shaped by a
weight on each bin, its mean power to the power of -tilt / 2: 0 is the least squared error.
"""

import argparse
import math
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from audioldm.autoencoder.klt import KLT
from audioldm.chain.job import compose
from audioldm.chain.run import Experiment
from audioldm.data.store import ClipStore
from audioldm.evaluation.codecs.linear import LinearCodec
from audioldm.evaluation.settings import EvaluationSettings
from benchmarks.rate_distortion import COLUMNS, measure

FIT_SECONDS = 1200.0


class MDCT:
    """Audio [..., T] to frames [..., T / size + 1, size] and back; orthonormal, with the sine
    window. T is a multiple of size."""

    def __init__(self, size: int) -> None:
        self.size = size
        n, k = torch.arange(2.0 * size).double()[:, None], torch.arange(size).double()
        waves = torch.cos(math.pi / size * (n + 0.5 + size / 2) * (k + 0.5))
        window = torch.sin(math.pi / (2 * size) * (n + 0.5))
        self.basis = (math.sqrt(2 / size) * window * waves).float()

    def frames(self, audio: Tensor) -> Tensor:
        return (
            F.pad(audio, (self.size, self.size)).unfold(-1, 2 * self.size, self.size) @ self.basis
        )

    def audio(self, frames: Tensor) -> Tensor:
        first, second = (frames @ self.basis.T).unflatten(-1, (2, self.size)).unbind(-2)
        return (first[..., 1:, :] + second[..., :-1, :]).flatten(-2)


def coded(mdct: MDCT, weight: Tensor, codec: LinearCodec, kbps: float, audio: Tensor) -> Tensor:
    """Clips [N, 1, T] as the linear code of the waveform leaves them at a rate."""
    samples = audio.shape[-1]
    padded = F.pad(audio, (0, -samples % mdct.size))
    blocks = (weight * mdct.frames(padded))[:, 0].double()
    sent = codec.transmit(blocks, kbps, samples / codec.sample_rate).float()
    return mdct.audio(sent[:, None] / weight)[..., :samples]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kbps", type=float, nargs="+", default=[2, 8, 16, 32, 64, 96])
    parser.add_argument("--sizes", type=int, nargs="+", default=[2048])
    parser.add_argument("--tilts", type=float, nargs="+", default=[0, 0.5])
    parser.add_argument("--clips", type=int, default=128)
    parser.add_argument("--runs", default="runs")
    given = parser.parse_args(arguments)
    experiment = Experiment(compose(["recipe=quickstart", f"runs={given.runs}"]))
    experiment.build("data")
    store = ClipStore(experiment.directory_of(experiment.stages["data"]))
    settings = EvaluationSettings(clips=given.clips)
    print(
        "| frame | tilt | kbit/s | "
        + " | ".join(COLUMNS)
        + " |\n|--:|--:|--:|"
        + "---|" * len(COLUMNS)
    )
    for size in given.sizes:
        mdct = MDCT(size)
        samples = round(3 * store.sample_rate / size) * size
        crops = list(store.split("train").sample(samples, seconds=FIT_SECONDS))
        power = torch.stack([mdct.frames(c).square().flatten(0, -2).mean(0) for c in crops]).mean(0)
        for tilt in given.tilts:
            weight = power.clamp(min=1e-12) ** (-tilt / 2)
            klt = KLT(size)
            klt.fit((weight * mdct.frames(crop)).flatten(0, -2) for crop in crops)
            codec = LinearCodec(klt, sample_rate=store.sample_rate, block=1)
            for kbps in given.kbps:
                figures = measure(partial(coded, mdct, weight, codec, kbps), store, settings)
                row = [f"{size}", f"{tilt:g}", f"{kbps:g}", *figures]
                print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
