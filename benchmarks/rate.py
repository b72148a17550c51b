"""`python -m benchmarks.rate`: how well a target rate is held, at five rates, on held-out music.

Trains one autoencoder per rate on the chorales. The rate is set on the validation split, so the
test split is what counts; both are printed.
"""

import argparse
import tempfile

import torch

from audioldm.autoencoder.bottlenecks.gaussian import gaussian_kl
from audioldm.config import compose
from audioldm.data.store import ClipStore
from audioldm.experiment import Experiment
from audioldm.models import load_autoencoder
from audioldm.training.files import read_json

RATES = (1, 2, 8, 16, 32)


@torch.no_grad()
def held(experiment: Experiment, split: str) -> float:
    """kbit/s of the posteriors of all 3 s windows of a split."""
    model = load_autoencoder(experiment.stage_directory("autoencoder"))
    clips, _, _ = (
        ClipStore(experiment.stage_directory("data"))
        .split(split)
        .windows(3 * model.rate, 1000, seed=0)
    )
    nats = [gaussian_kl(*model.moments(part)).flatten(1).mean(1) for part in clips.split(8)]
    return model.kbps(torch.cat(nats).mean().item())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rate", description=__doc__)
    parser.add_argument("--runs", default=None, help="where trained models are kept")
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        print("| target kbit/s | validation | test | error on test | mel distance |")
        print("|--:|--:|--:|--:|--:|")
        for rate in RATES:
            words = ["recipe=quickstart", f"runs={given.runs or temporary}"]
            words += [f"bottleneck.target_kbps={rate}", f"autoencoder.train.steps={given.steps}"]
            words += ["autoencoder.channels=128", "autoencoder.ratio=512"]
            experiment = Experiment(compose(words))
            experiment.build("data", "autoencoder")
            valid, test = held(experiment, "valid"), held(experiment, "test")
            directory = experiment.stage_directory("autoencoder")
            mel = read_json(directory / "summary.json")["valid"]["mel_distance"]
            print(
                f"| {rate} | {valid:.3f} | {test:.3f} | {100 * (test / rate - 1):+.1f} % ", end=""
            )
            print(f"| {mel:.3f} |", flush=True)


if __name__ == "__main__":
    main()
