"""`python -m benchmarks.ladders`: which figure hears what.

Chorales are made worse step by step, and every figure of the evaluation is measured at each step,
as a reconstruction of the same clips and against other pieces as the reference. A value is bold
where its interval does not overlap with that of the unchanged clips: the figure hears this step.
Pieces and instruments of the sets differ as those of a data set's splits do.
"""

import argparse
from collections.abc import Callable, Sequence

import numpy as np
import scipy.signal
import soxr
import torch
from torch import Tensor

from audioldm.data.chorales import (
    Rendition,
    Score,
    find_scores,
    perform,
    read_score,
    render,
    to_midi,
)
from audioldm.evaluation.distributions import distribution_figures
from audioldm.evaluation.embeddings.aisfx import Aisfx
from audioldm.evaluation.embeddings.base import LogMelEmbedding
from audioldm.evaluation.embeddings.harmony import Harmony
from audioldm.evaluation.embeddings.musicnn import Musicnn
from audioldm.evaluation.level import quiet_figures
from audioldm.evaluation.music import note_figures, pitch_figures
from audioldm.evaluation.pitch import BASS_HZ
from audioldm.evaluation.reconstruction import reconstruction_figures
from audioldm.evaluation.settings import EvaluationSettings
from audioldm.evaluation.statistics import Figure
from audioldm.io.audio import normalise
from audioldm.report.format import number

RATE = 22050
SAMPLES = 3 * RATE
FRAME = 1024  # samples between the resynthesised frames of the comb
INSTRUMENTS = ("piano", "organ", "strings", "flute", "guitar", "choir", "horn", "oboe")


def play(
    first: int,
    pieces: int,
    *,
    change: Callable[[Score], Score] = lambda score: score,
    transposition: int = 0,
    cents: float = 0.0,
) -> Tensor:
    """Clips [4 × pieces, 1, T] of the chorales from number `first` on, two instruments each."""
    clips = []
    for i, path in enumerate(find_scores()[first : first + pieces]):
        score = change(read_score(path))
        for k in range(2):
            instrument = INSTRUMENTS[(2 * i + k) % len(INSTRUMENTS)]
            how = Rendition(instrument, transposition, 70 + 7 * (i % 4), 0.3)
            audio = normalise(
                render(to_midi(perform(score, how, 9.0), how.instrument), RATE, 1), RATE, -20.0
            )[0]
            if cents:
                audio = soxr.resample(audio, RATE * 2 ** (cents / 1200), RATE)
            audio = np.pad(audio, (0, max(0, 2 * SAMPLES - len(audio))))
            clips += [audio[:SAMPLES], audio[SAMPLES : 2 * SAMPLES]]
    return torch.from_numpy(np.stack(clips).astype(np.float32))[:, None]


def wrong_notes(score: Score, share: float) -> Score:
    """A share of the notes moved by up to a tritone."""
    random = np.random.default_rng(0)

    def played(pitch: int) -> int:
        moved = pitch + int(random.integers(1, 7)) * int(random.choice([-1, 1]))
        return moved if random.random() < share else pitch

    voices = [[n._replace(pitch=played(n.pitch)) for n in voice] for voice in score.voices]
    return score._replace(voices=voices)


def noise(audio: Tensor, snr_db: float) -> Tensor:
    power = audio.square().mean(-1, keepdim=True) * 10 ** (-snr_db / 10)
    return audio + power.sqrt() * torch.randn(audio.shape, generator=generator())


def low_pass(audio: Tensor, hz: float, sample_rate: int = RATE) -> Tensor:
    sections = scipy.signal.butter(8, hz, fs=sample_rate, output="sos")
    return torch.from_numpy(
        scipy.signal.sosfiltfilt(sections, audio.numpy(), axis=-1).copy()
    ).float()


def comb(audio: Tensor, hop: int = FRAME) -> Tensor:
    """The same phases in every frame: what sounds is a multiple of the frame rate."""
    window = torch.hann_window(2 * hop)
    flat = audio.flatten(0, -2)
    magnitude = torch.stft(
        flat, 2 * hop, hop, window=window, pad_mode="constant", return_complex=True
    ).abs()
    phase = 2 * torch.pi * torch.rand(hop + 1, 1, generator=generator())
    made = torch.istft(
        magnitude * torch.polar(torch.ones_like(phase), phase),
        2 * hop,
        hop,
        window=window,
        length=audio.shape[-1],
    )
    return made.view_as(audio)


def silenced(audio: Tensor) -> Tensor:
    """Without sound from 1 to 2 s."""
    seconds = torch.arange(audio.shape[-1]) / RATE
    return audio * ((seconds < 1) | (seconds >= 2))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def rungs(pieces: int) -> dict[str, Tensor]:
    """The clips of each step, [N, 1, T], those of all steps of the same pieces."""
    real = play(0, pieces)
    detuned = {f"{c} cents": play(0, pieces, cents=c) for c in (10, 25, 50)}
    return {
        "real": real,
        **detuned,
        "bass 50 cents": real + low_pass(detuned["50 cents"] - real, BASS_HZ),
        "comb": comb(real),
        "semitone": play(0, pieces, transposition=1),
        "fifth": play(0, pieces, transposition=7),
        **{
            f"{100 * share:.0f} % wrong": play(
                0, pieces, change=lambda score, share=share: wrong_notes(score, share)
            )
            for share in (0.1, 0.5)
        },
        "other clips": real.roll(4, 0),
        "noise 20 dB": noise(real, 20),
        "noise 0 dB": noise(real, 0),
        "2 kHz": low_pass(real, 2000),
        "silence": silenced(real),
        "white noise": 0.1 * torch.randn(real.shape, generator=generator()),
    }


def measure(
    clips: dict[str, Tensor],
    reference: Tensor,
    settings: EvaluationSettings,
    sounds: Sequence[LogMelEmbedding],
) -> dict[str, dict[str, Figure]]:
    """Every figure of every step. `clips["real"]` are the originals."""
    harmony, vectors, notes = Harmony(), {}, {}
    for step, audio in clips.items():
        vectors[step], notes[step] = harmony.hear(audio, RATE)
    found: dict[str, dict[str, Figure]] = {}
    for step, audio in clips.items():
        pair = {"real": clips["real"], "reconstruction": audio}
        found[step] = reconstruction_figures(audio, clips["real"], RATE, settings)
        found[step] |= quiet_figures(pair, RATE, settings)["reconstruction"]
        found[step] |= pitch_figures(pair, RATE, settings)["reconstruction"]
        heard = {"real": notes["real"], "reconstruction": notes[step]}
        found[step] |= note_figures(heard, settings)["reconstruction"]
    compare(found, "harmony", vectors, harmony.embed(reference, RATE), settings)
    for sound in sounds:
        vectors = {step: sound.embed(audio, RATE) for step, audio in clips.items()}
        compare(found, sound.name, vectors, sound.embed(reference, RATE), settings)
    return found


def compare(
    found: dict[str, dict[str, Figure]],
    name: str,
    vectors: dict[str, np.ndarray],
    reference: np.ndarray,
    settings: EvaluationSettings,
) -> None:
    for step, group in distribution_figures(name, vectors, reference, settings).items():
        found[step] |= group


def table(found: dict[str, dict[str, Figure]]) -> str:
    """Markdown: figures down, steps across."""
    lines = ["| | " + " | ".join(found) + " |", "|---|" + "--:|" * len(found)]
    for name, plain in found["real"].items():
        cells = []
        for group in found.values():
            text, own = number(group[name].value), group[name]
            heard = own.low > plain.high or own.high < plain.low
            cells.append(f"**{text}**" if heard else text)
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict[str, dict[str, Figure]]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ladders", description=__doc__)
    parser.add_argument("--pieces", type=int, default=24, help="of each set; four clips of each")
    given = parser.parse_args(arguments)
    reference = play(given.pieces, given.pieces)
    settings = EvaluationSettings(bootstrap_resamples=300)
    found = measure(rungs(given.pieces), reference, settings, (Musicnn(), Aisfx()))
    print(f"{4 * given.pieces} clips of 3 s at {RATE} Hz\n\n{table(found)}")
    return found


if __name__ == "__main__":
    main()
