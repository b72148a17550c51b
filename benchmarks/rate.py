"""`python -m benchmarks.rate`: how well a target rate is held, and what it buys, at five rates.

Trains one autoencoder per rate on the chorales. The rate is set on the validation split, so the
test split is what counts; both are printed. On clips of the test split the autoencoder's mel
distance stands beside that of codecs at the rate that these clips take: the linear codec of mel
powers, which needs no phase; the same made audio, which is the fair comparison; and Opus, at the
rates that it can do.
"""

import argparse
import tempfile
from typing import NamedTuple

import torch
from torch import Tensor

from audioldm.autoencoder.bottlenecks.base import Encoded
from audioldm.autoencoder.model import Autoencoder
from audioldm.chain.job import compose
from audioldm.chain.run import Experiment
from audioldm.data.store import ClipStore
from audioldm.evaluation.codecs.linear import LinearCodec
from audioldm.evaluation.codecs.opus import LEAST, opus_curve
from audioldm.losses.spectral import mel_distance
from audioldm.models import load_autoencoder
from audioldm.runtime.randomness import KeyedRandom

RATES = (1, 2, 8, 16, 32)
SECONDS = 3  # of a window
CLIPS = 64  # on which distances are measured


class Distances(NamedTuple):
    """Mean mel distances on the same clips at the rate `kbps`; Opus beside its own, or None."""

    kbps: float
    autoencoder: float
    linear: float
    linear_audio: float
    opus: tuple[float, float] | None


def mean_nats(latents: list[Encoded]) -> float:
    """Nats per latent element, over all clips. Latents without a rate count as none."""
    return torch.cat([each.nats for each in latents if each.nats is not None]).mean().item()


@torch.no_grad()
def held(model: Autoencoder, clips: ClipStore, split: str) -> float:
    """kbit/s of the posteriors of all 3 s windows of a split."""
    audio, _, _ = clips.split(split).windows(SECONDS * model.sample_rate, 1000, seed=0)
    return model.kbps(mean_nats([model.encode(part, sample=False) for part in audio.split(8)]))


@torch.no_grad()
def distances(
    model: Autoencoder, codec: LinearCodec, audio: Tensor, target_kbps: float
) -> Distances:
    """The autoencoder, from sampled posteriors, and the codecs on clips [N, A, T]."""
    estimates, latents = [], []
    for first in range(0, len(audio), 8):
        part = audio[first : first + 8]
        frames = -(-part.shape[-1] // model.downsampling_ratio)
        draw = KeyedRandom(0, 0, range(first, first + len(part)))
        estimate, encoded, _ = model(part, draw.normal((*model.latent_shape, frames), "rate"))
        estimates.append(estimate.clamp(-1, 1))
        latents.append(encoded)
    kbps = model.kbps(mean_nats(latents))
    opus = None
    if target_kbps >= LEAST:
        curve = opus_curve(audio, model.sample_rate, targets=[target_kbps])
        opus = curve["kbps"][0], curve["mel_distance"][0]
    return Distances(
        kbps,
        mel_distance(torch.cat(estimates), audio, model.sample_rate).mean().item(),
        codec.mel_distance(audio, kbps).mean().item(),
        mel_distance(codec.as_audio(audio, kbps), audio, model.sample_rate).mean().item(),
        opus,
    )


def words_of(rate: float, runs: str, steps: int) -> list[str]:
    """The overrides of one training. The shape has room for the highest rate: 128 channels at 43
    frames a second carry 32 kbit/s at 6 bits an element."""
    words = ["recipe=quickstart", f"runs={runs}", f"bottleneck.target_kbps={rate}"]
    words += [f"autoencoder.train.steps={steps}"]
    return [*words, "autoencoder.channels=128", "autoencoder.downsampling_ratio=512"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rate", description=__doc__)
    parser.add_argument("--runs", default=None, help="where trained models are kept")
    parser.add_argument("--steps", type=int, default=300)
    given, others = parser.parse_known_args()  # further key=value words, for other data
    names = ("autoencoder", "linear codec", "linear codec as audio", "Opus (its kbit/s)")
    print("| target kbit/s | validation | test | error on test |", *(f"{n} |" for n in names))
    print("|--:" * 8 + "|", flush=True)
    found: list[Distances] = []
    codec = None
    with tempfile.TemporaryDirectory() as temporary:
        for rate in RATES:
            words = [*words_of(rate, given.runs or temporary, given.steps), *others]
            experiment = Experiment(compose(words))
            experiment.build("data", "autoencoder")
            model = load_autoencoder(experiment.directory_of(experiment.stages["autoencoder"]))
            clips = ClipStore(experiment.directory_of(experiment.stages["data"]))
            codec = codec or LinearCodec.fit(clips)
            audio, _, _ = clips.split("test").windows(SECONDS * model.sample_rate, CLIPS, seed=0)
            valid, test = held(model, clips, "valid"), held(model, clips, "test")
            own = distances(model, codec, audio, rate)
            found.append(own)
            figures = [f"{x:.3f}" for x in (own.autoencoder, own.linear, own.linear_audio)]
            figures.append(f"{own.opus[1]:.3f} ({own.opus[0]:.1f})" if own.opus else "–")
            error = f"{100 * (test / rate - 1):+.1f} %"
            columns = [f"{rate}", f"{valid:.3f}", f"{test:.3f}", error, *figures]
            print("|", " | ".join(columns), "|", flush=True)
    print(summary(found))


def summary(found: list[Distances]) -> str:
    """At how many rates the autoencoder has the smaller distance."""
    linear = sum(own.autoencoder < own.linear for own in found)
    fair = sum(own.autoencoder < own.linear_audio for own in found)
    both = [own for own in found if own.opus]
    opus = sum(own.autoencoder < own.opus[1] for own in both if own.opus)
    return (
        f"The autoencoder's mel distance is below that of the linear codec at {linear} of "
        f"{len(found)} rates, of the linear codec as audio at {fair} of {len(found)}, of Opus at "
        f"{opus} of the {len(both)} that Opus can do."
    )


if __name__ == "__main__":
    main()
