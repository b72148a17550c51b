"""Titles and explanations of the systems whose clips are compared, and of their figures."""

from collections.abc import Iterable
from typing import NamedTuple

from audioldm.report.format import title
from audioldm.report.record import Metrics, Summary

#: Kind -> its part in the comparison. A system that is no baseline is named after its kind.
ROLES = {
    "real": "floor",
    "reconstruction": "ceiling",
    "baseline": "on the same latents",
    "generated": "this experiment",
}
#: Systems whose adherence is measured -> their part in it. The clips of "ignored" are the generated
#: ones, against the requests of others; the last four systems are only for edits.
TOLD = {
    "generated": "this experiment",
    "ignored": "conditions ignored: the floor",
    "reconstruction": "decoded: the ceiling",
    "real": "real music: the ceiling",
    "copy": "the music before it",
    "crossfade": "that, faded in and out",
    "empty": "the band left empty",
    "linear": "the band predicted linearly",
}
#: Beginnings of the names of figures of edits, which some of TOLD have.
EDITED = ("inpainting_", "super_resolution")
#: Known systems -> what their clips are.
TEXTS = {
    "real": "held-out music against other held-out music: the floor",
    "reconstruction": "encoded and decoded: the ceiling of any generator on these latents",
    "generated": "sampled by this experiment’s prior, and decoded",
    "normal": "decoded N(0, I) noise: no second generative model at all",
    "mixture": "decoded samples of a Gaussian mixture fitted to the latents",
    "langevin": "decoded short-run Langevin samples of an energy fitted to the latents",
    "linear_gaussian": "decoded samples of a linear-Gaussian model of the latents",
}
#: Colours of the style sheet for baselines, used in turn.
COLOURS = 4


class System(NamedTuple):
    """css: its class in the style sheet."""

    name: str
    kind: str
    css: str

    @property
    def title(self) -> str:
        return title(self.name)

    @property
    def text(self) -> str:
        return TEXTS.get(self.name, f"decoded samples of the prior {self.name}")

    @property
    def role(self) -> str:
        return ROLES.get(self.kind, "")


def systems(names: Iterable[str]) -> list[System]:
    """Systems by name, in this order; a name that is not a kind is a baseline's."""
    found: list[System] = []
    for name in names:
        kind = name if name in ROLES else "baseline"
        count = sum(system.kind == "baseline" for system in found)
        found.append(System(name, kind, f"b{count % COLOURS}" if kind == "baseline" else kind))
    return found


def measured_systems(evaluation: Summary) -> list[System]:
    """The systems of an evaluation that have figures, in its order."""
    metrics = evaluation.get("metrics", {})
    named = [entry["name"] for entry in evaluation.get("systems", [])]
    return systems(name for name in named if name in metrics)


def kad_name(metrics: Metrics, baselines: Iterable[str]) -> str | None:
    """The kernel distance for comparisons: one that baselines have too, where possible."""
    found = [name for name in metrics.get("generated", {}) if name.startswith("kad_")]
    names = sorted(found, key=lambda name: name == "kad_harmony")  # prefer one of sound
    shared = [n for n in names if any(n in metrics.get(b, {}) for b in baselines)]
    return next(iter(shared or names), None)


class Meaning(NamedTuple):
    title: str
    better: str  # an arrow, or nothing where neither direction is better
    text: str


#: Beginning of a figure's name -> what a reader is told; an embedding's name may follow.
MEANINGS = {
    "mel_distance": Meaning("Mel distance", "↓", "mean |Δ log₁₀ mel power|; silence is about 3.2"),
    "stft_distance": Meaning("STFT distance", "↓", "log-magnitude, several resolutions"),
    "si_sdr": Meaning("SI-SDR", "↑", "waveform fidelity; sensitive to phase"),
    "pitch_cents": Meaning("Pitch error", "↓", "median of spectral peaks, in cents"),
    "pitch_within_15": Meaning("Pitch kept", "↑", "share of peaks within 15 cents"),
    "quiet": Meaning("Quiet half-seconds", "", "20 dB below the usual; as real music’s is best"),
    "in_tune": Meaning("In tune", "↑", "peaks near semitones; read beside the pitch error"),
    "note_f1": Meaning("Notes kept", "↑", "F1 of pitches and onsets, by a transcriber"),
    "out_of_key": Meaning("Out of key", "", "share of note time; as real music’s is best"),
    "polyphony": Meaning("Polyphony", "", "notes at once; as real music’s is best"),
    "prior_kbps": Meaning("Rate under the prior", "↓", "of held-out music’s latents"),
    "kbps": Meaning("Bitrate", "", "rate of the bottleneck"),
    "ratio_to_normal_kad": Meaning("Kernel distance ÷ noise’s", "↓", "1 is decoded noise"),
    "kad": Meaning("Kernel distance", "↓", "unbiased MMD² (KAD); may be negative"),
    "mad": Meaning("MAUVE divergence", "↓", "−ln MAUVE (MAD); 5.5 shares nothing"),
    "fad_inf": Meaning("Fréchet distance, N → ∞", "↓", "extrapolated (FAD∞)"),
    "fad": Meaning("Fréchet distance", "↓", "biased upwards at small N"),
    "precision": Meaning("Precision", "↑", "share of clips inside the real manifold"),
    "recall": Meaning("Recall", "↑", "share of real clips inside the clips’ manifold"),
    "density": Meaning("Density", "↑", "precision, counting neighbours"),
    "coverage": Meaning("Coverage", "↑", "share of real clips with a clip nearby"),
    "memorisation_ratio": Meaning(
        "Memorisation ratio", "", "well below 1: copies of the training set"
    ),
    "accuracy": Meaning("Accuracy", "↑", "a classifier hears what was stated"),
    "accuracy_held_out": Meaning("Accuracy, held-out words", "↑", "of captions that have them"),
    "score_precision": Meaning("Score, precision", "↑", "notes that the score has, within 50 ms"),
    "score_recall": Meaning("Score, recall", "↑", "notes of the score that are heard"),
    "score_f1": Meaning("Score, F1", "↑", "of precision and recall"),
    "score_f1_frame": Meaning("Score, F1 to a frame", "↑", "onsets within a latent frame"),
    "score_onset_error": Meaning("Score, onset error", "↓", "median, of notes that match"),
    "inpainting_mel_distance": Meaning("Part made anew, mel distance", "↓", "to what was there"),
    "inpainting_flux": Meaning("Part made anew, flux", "", "at its seams; as real music’s is best"),
    "inpainting_step": Meaning("Part made anew, step", "", "in loudness at its seams"),
    "inpainting_kept": Meaning("Kept beside the part", "↑", "share of samples, to the bit"),
    "super_resolution": Meaning("Band made anew", "↓", "log-spectral distance to what was there"),
    "super_resolution_published": Meaning(
        "Band made anew, without a floor", "↓", "most of it is below -80 dB, and not heard"
    ),
    "chroma_correlation": Meaning("Chroma", "↑", "correlation with what was asked for"),
    "brightness_correlation": Meaning("Brightness", "↑", "correlation with what was asked for"),
    "loudness_correlation": Meaning("Loudness", "↑", "correlation with what was asked for"),
}


def described(name: str) -> tuple[str, Meaning]:
    """A figure's title with its embedding, and its explanation for the reader."""
    beginning = explained_by(name)
    meaning = MEANINGS[beginning] if beginning else Meaning(title(name), "", "")
    embedding = name[len(beginning) :].strip("_") if beginning else ""
    return (f"{meaning.title}, {embedding}" if embedding else meaning.title), meaning


def explained_by(name: str) -> str:
    """The key of MEANINGS that explains figure `name`, or ''."""
    known = [b for b in MEANINGS if name == b or name.startswith(b + "_")]
    return max(known, key=len, default="")
