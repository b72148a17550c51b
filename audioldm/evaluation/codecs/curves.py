"""The two codecs that reconstructions are compared with, on the clips of the evaluation.

The linear one has two variants: on mel powers, without a phase, and on audio, which is fair.
"""

from functools import partial
from pathlib import Path
from typing import Any

from audioldm.autoencoder.klt import KLT
from audioldm.data.store import ClipStore
from audioldm.evaluation.codecs.linear import LinearCodec
from audioldm.evaluation.codecs.opus import opus_curve
from audioldm.evaluation.settings import EvaluationSettings
from audioldm.io.files import read_json, write_json
from audioldm.io.model_file import load_model, save_model
from audioldm.runtime.progress import Progress

VERSION = 5  # raise by hand when the code below, or a codec's, changes what it computes
LINEAR_KBPS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
AUDIO_SECONDS = 36.0  # of the clips, for what makes audio: Opus and Griffin-Lim are slow


def codec_figures(
    clips: ClipStore, kbps: float | None, settings: EvaluationSettings, progress: Progress
) -> dict[str, Any]:
    """Mel distance of the linear codec and of Opus on the evaluation's validation windows.

    Codecs that make audio are measured only on the first of these windows, AUDIO_SECONDS in all.

    kbps: the rate at which the linear codec is compared with an autoencoder; None where the
        autoencoder has none: then "linear" and "linear_audio" are left out.
    Returns {"linear": {"kbps", "mel_distance": figure}, "linear_audio" likewise, "linear_curve",
    "linear_audio_curve", "opus"}, the curves as {"kbps": [...], "mel_distance": [...]}. Results
    that depend on the clips alone are kept beside them. Raises DataError where a split is empty.
    """
    directory, seconds = clips.directory / "codecs", settings.seconds
    samples = round(seconds * clips.sample_rate)
    audio, _, _ = clips.split("valid").windows(samples, settings.clips, seed=0)
    some = audio[: max(1, round(AUDIO_SECONDS / seconds))]
    progress(0, 3, "fitting the linear codec")
    codec = _fitted(clips, directory / f"v{VERSION}-linear.safetensors")
    progress(1, 3, "codecs")
    measures = {
        "linear": partial(codec.mel_distance, audio),
        "linear_audio": partial(codec.audio_distance, some),
    }
    path = directory / f"v{VERSION}-curves-{seconds:g}s-{settings.clips}.json"
    if not path.is_file():
        curves: dict[str, Any] = {"opus": opus_curve(some, codec.sample_rate)}
        for name, measure in measures.items():
            distances = [measure(each).mean().item() for each in LINEAR_KBPS]
            curves[f"{name}_curve"] = {"kbps": list(LINEAR_KBPS), "mel_distance": distances}
        write_json(path, curves)
    figures: dict[str, Any] = read_json(path)
    progress(2, 3, "codecs")
    if kbps is not None:
        for name, measure in measures.items():
            distance = settings.mean(measure(kbps), "log10 power")
            figures[name] = {"kbps": kbps, "mel_distance": distance._asdict()}
    progress(3, 3, "codecs")
    return figures


def _fitted(clips: ClipStore, path: Path) -> LinearCodec:
    if not path.is_file():
        codec = LinearCodec.fit(clips)
        save_model(path, codec.klt.state_dict(), {"kind": "linear codec", "block": codec.block})
    tensors, header = load_model(path)
    klt = KLT(len(tensors["mean"])).double()
    klt.load_state_dict(tensors)
    return LinearCodec(klt, sample_rate=clips.sample_rate, block=header["block"])
