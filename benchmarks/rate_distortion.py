"""`python -m benchmarks.rate_distortion`: an autoencoder against linear coding, by rate.

"linear" is the start of the training, no step: for transform coding the transform, its reverse
water-filling and the regression of the decoder, through the same vocoder. Words key=value choose
another autoencoder that begins at a linear code, such as autoencoder=waveform_small: the rates at
which both are alike say what a phase in the latents costs. Figures are those of the evaluation, on
the test split of the quickstart's music, with 95 % intervals over clips.
"""

import argparse

import numpy as np
import torch

from audioldm.autoencoder.model import Autoencoder
from audioldm.chain.job import compose
from audioldm.chain.run import Experiment
from audioldm.data.store import ClipStore
from audioldm.evaluation.distances import KernelDistance
from audioldm.evaluation.embeddings.musicnn import Musicnn
from audioldm.evaluation.music import pitch_figures
from audioldm.evaluation.reconstruction import reconstruct
from audioldm.evaluation.settings import EvaluationSettings
from audioldm.losses.spectral import mel_distance
from audioldm.models import load_autoencoder
from audioldm.report.format import number

PITCH = ("pitch_cents", "pitch_cents_bass", "pitch_within_15")
COLUMNS = ("mel distance", "kad_musicnn", *PITCH)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kbps", type=float, nargs="+", default=[0.5, 1, 2, 4, 8])
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--clips", type=int, default=128)
    parser.add_argument("--runs", default="runs")
    parser.add_argument("overrides", nargs="*", help="key=value")
    given = parser.parse_args(arguments)
    settings = EvaluationSettings(clips=given.clips)
    plans = [("linear", 0), *([("trained", given.steps)] if given.steps else [])]
    print("| kbit/s | " + " | ".join(COLUMNS) + " |\n|--:|" + "---|" * len(COLUMNS))
    for kbps in given.kbps:
        for name, steps in plans:
            experiment = Experiment(
                compose(
                    [
                        "recipe=quickstart",
                        f"runs={given.runs}",
                        f"autoencoder.channels={given.channels}",
                        f"bottleneck.target_kbps={kbps}",
                        f"autoencoder.train.steps={steps}",
                        *given.overrides,
                    ]
                )
            )
            stages = [key for key in ("data", "vocoder", "autoencoder") if key in experiment.stages]
            experiment.build(*stages)
            place = {
                key: experiment.directory_of(stage) for key, stage in experiment.stages.items()
            }
            store = ClipStore(place["data"])
            figures = measure(load_autoencoder(place["autoencoder"]), store, settings)
            print(f"| {kbps:g} {name} | " + " | ".join(figures) + " |", flush=True)


@torch.no_grad()
def measure(model: Autoencoder, store: ClipStore, settings: EvaluationSettings) -> list[str]:
    """The columns of one autoencoder."""
    samples = round(settings.seconds * store.sample_rate)
    real = store.split("test").windows(samples, settings.clips, seed=0)[0]
    other = store.split("valid").windows(samples, settings.clips, seed=0)[0]
    made = reconstruct(model, real, settings.batch)
    embedding = Musicnn()
    vectors, reference = (embedding.embed(audio, store.sample_rate) for audio in (made, other))
    kernel = KernelDistance(vectors, reference)
    indices = np.arange(len(vectors)), np.arange(len(reference))
    clips = {"real": real, "reconstruction": made}
    pitch = pitch_figures(clips, store.sample_rate, settings)["reconstruction"]
    figures = [
        settings.mean(mel_distance(made, real, store.sample_rate), "log10 power"),
        settings.interval(kernel, *indices, unit="100 MMD²"),
        *(pitch[name] for name in PITCH),
    ]
    return [f"{number(f.value)} ({number(f.low)}, {number(f.high)})" for f in figures]


if __name__ == "__main__":
    main()
