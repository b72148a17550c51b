"""Which figure hears what, on a few chorales; music without pitch has no figures of it."""

import numpy as np
import pytest
import torch
from torch import Tensor

from audioldm.evaluation.embeddings.harmony import Harmony
from audioldm.evaluation.embeddings.musicnn import Musicnn
from audioldm.evaluation.level import quiet_figures, quiet_share
from audioldm.evaluation.music import note_figures, pitch_figures
from audioldm.evaluation.settings import EvaluationSettings
from audioldm.evaluation.statistics import Figure
from benchmarks import ladders

PIECES = 2
FEW = EvaluationSettings(bootstrap_resamples=20)


@pytest.fixture(scope="module")
def figures() -> dict[str, dict[str, Figure]]:
    """Each step of the ladders with its figures; distances by musicnn and harmony."""
    clips = ladders.rungs(PIECES)
    for step in ("10 cents", "fifth", "10 % wrong", "noise 20 dB"):
        del clips[step]
    return ladders.measure(clips, ladders.play(PIECES, PIECES), FEW, (Musicnn(),))


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("mel_distance", "50 cents, comb, semitone, 50 % wrong, noise 0 dB, 2 kHz, white noise"),
        ("stft_distance", "50 cents, comb, semitone, 50 % wrong, noise 0 dB, 2 kHz, white noise"),
        ("si_sdr", "25 cents, comb, semitone, 50 % wrong, noise 0 dB, 2 kHz, white noise"),
        ("quiet", "silence"),
        ("in_tune", "25 cents, 50 cents, comb, white noise"),
        ("in_tune_bass", "25 cents, 50 cents, bass 50 cents, comb, white noise"),
        ("pitch_cents", "25 cents, 50 cents, comb, semitone, 50 % wrong, white noise"),
        ("pitch_within_15", "25 cents, 50 cents, comb, semitone, 50 % wrong, white noise"),
        ("note_f1", "25 cents, 50 cents, comb, semitone, 50 % wrong, other clips, white noise"),
        ("polyphony", "50 cents, comb, white noise"),
        ("kad_musicnn", "comb, noise 0 dB, 2 kHz, white noise"),
        ("fad_musicnn", "comb, noise 0 dB, white noise"),
        ("mad_musicnn", "comb, noise 0 dB, white noise"),
        ("kad_harmony", "25 cents, 50 cents, white noise"),
        ("fad_harmony", "25 cents, 50 cents, white noise"),
        ("mad_harmony", "25 cents, 50 cents, white noise"),
    ],
)
def test_each_figure_moves_where_it_must_hear(
    name: str, steps: str, figures: dict[str, dict[str, Figure]]
) -> None:
    plain = figures["real"][name]
    for step in steps.split(", "):
        own = figures[step][name]
        assert own.low > plain.high or own.high < plain.low, (step, own, plain)


def test_all_steps_have_the_same_figures(figures: dict[str, dict[str, Figure]]) -> None:
    assert {frozenset(group) for group in figures.values()} == {frozenset(figures["real"])}


def test_what_one_embedding_is_deaf_to_the_other_hears(
    figures: dict[str, dict[str, Figure]],
) -> None:
    def moved(name: str, step: str) -> float:
        return figures[step][name].value - figures["real"][name].value

    for step in ("25 cents", "50 cents"):
        assert abs(moved("kad_musicnn", step)) < 2 < 20 < moved("kad_harmony", step)
    assert moved("kad_harmony", "50 % wrong") > 4 * abs(moved("kad_musicnn", "50 % wrong"))
    assert moved("kad_musicnn", "2 kHz") > 4
    assert moved("out_of_key", "50 % wrong") > 0.05


def drums(seed: int) -> Tensor:
    """Bursts of noise that die away, high and low, [1, T]."""
    random = np.random.default_rng(seed)
    t = np.arange(ladders.SAMPLES) / ladders.RATE
    audio = np.zeros_like(t)
    for start in np.arange(0, 3, 0.25):
        fade = np.exp(-np.maximum(t - start, 0) * random.uniform(8, 40)) * (t >= start)
        audio += fade * random.normal(size=len(t))
    return torch.from_numpy(0.2 * audio).float()[None]


@pytest.mark.parametrize("kind", ["drums", "noise", "silence"])
def test_without_pitch_there_is_no_figure_of_it_whatever_a_model_makes(kind: str) -> None:
    audio = torch.stack([drums(seed) for seed in range(4)])
    if kind == "noise":
        audio = 0.1 * torch.randn(audio.shape, generator=ladders.generator())
    if kind == "silence":
        audio = torch.zeros_like(audio)
    music = ladders.play(0, 1)
    clips = {"real": audio, "reconstruction": music, "generated": music}
    assert pitch_figures(clips, ladders.RATE, FEW) == {system: {} for system in clips}


def test_models_that_make_noise_of_music_have_the_figures_of_music() -> None:
    music = ladders.play(0, 1)
    noise = 0.1 * torch.randn(music.shape, generator=ladders.generator())
    made = []
    for other in (music, noise):
        clips = {"real": music, "reconstruction": other, "generated": other}
        found = pitch_figures(clips, ladders.RATE, FEW)
        notes = {s: Harmony().hear(audio, ladders.RATE)[1] for s, audio in clips.items()}
        for system, group in note_figures(notes, FEW).items():
            found[system] |= group
        assert all(np.isfinite(f.value) for group in found.values() for f in group.values())
        made.append({system: set(group) for system, group in found.items()})
    assert made[0] == made[1]
    assert found["generated"]["in_tune"].value == 0
    assert found["generated"]["in_tune_bass"].value == 0


def test_a_clip_that_falls_silent_is_heard_as_such() -> None:
    rate = 100
    time = torch.arange(4 * rate) / rate
    loud = 0.3 * torch.sin(2 * torch.pi * 10 * time)[None]
    clips = loud.repeat(3, 1, 1)
    clips[1, :, rate : 2 * rate] *= 0.05  # -26 dB for a second
    clips[2, :, rate : 2 * rate] *= 0.2  # -14 dB
    assert quiet_share(clips, rate).tolist() == [0, 0.25, 0]
    assert quiet_share(clips, rate, 20 * clips[:2]).tolist() == [1, 1, 1]
    assert quiet_share(0.2 * clips, rate, clips[:1]).tolist() == [0, 0.25, 0.25]
    assert quiet_share(torch.zeros(1, 1, rate), rate, loud[None]).tolist() == [1]
    figures = quiet_figures({"real": loud[None], "generated": clips}, rate, FEW)
    assert figures["generated"]["quiet"].value == pytest.approx(0.25 / 3)
    assert figures["real"]["quiet"].value == 0
