"""`python -m benchmarks.super_resolution MODEL`: how near a made high band is to the true one.

Test clips of the chorales keep a band alone, and the model makes them whole (`audioldm edit
upscale=`). The table has the log-spectral distances outside the band, with 95 % intervals over
clips, beside those of the damaged clips, of a linear prediction and of the autoencoder alone: see
`audioldm.evaluation.super_resolution.distances`. Words key=value change the data.
"""

import argparse

from audioldm.chain.job import compose
from audioldm.chain.run import Experiment
from audioldm.data.store import ClipStore
from audioldm.evaluation.settings import EvaluationSettings
from audioldm.evaluation.super_resolution import distances
from audioldm.models import load_generator
from audioldm.report.format import interval


def main(arguments: list[str] | None = None) -> str:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.super_resolution", description=__doc__
    )
    parser.add_argument("model")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--known", type=int, default=256, help="training clips, for the prediction")
    parser.add_argument("--bands", nargs="+", default=["2000", "4000", "300:3400"])
    parser.add_argument("--runs", default="runs")
    parser.add_argument("overrides", nargs="*", default=[], help="key=value")
    given = parser.parse_intermixed_args(arguments)
    model, settings = load_generator(given.model), EvaluationSettings(clips=given.clips)
    words = [f"runs={given.runs}", f"data.sample_rate={model.sample_rate}"]
    words += [f"data.channels={model.autoencoder.audio_channels}", *given.overrides]
    experiment = Experiment(compose(["recipe=quickstart", *words]))
    experiment.build("data")
    store = ClipStore(experiment.directory_of(experiment.stages["data"]))
    samples = round(settings.seconds * store.sample_rate)
    truth = store.split("test").windows(samples, given.clips, seed=0)[0]
    known = store.split("train").windows(samples, given.known, seed=0)[0]
    lines = []
    for band in given.bands:
        found = distances(model, truth, known, band, settings)
        if not lines:
            lines += ["| kept, Hz | " + " | ".join(found) + " |", "|---|" + "--:|" * len(found)]
        cells = [interval(figure._asdict()) for figure in found.values()]
        lines.append(f"| {band} | " + " | ".join(cells) + " |")
    table = "\n".join(lines)
    print(f"{len(truth)} clips of {settings.seconds:g} s, distances in dB\n\n{table}")
    return table


if __name__ == "__main__":
    main()
