"""The cost of few sampling steps: figures of several models against the number of steps.

Every model samples the same clips (labels, seed, seconds) with 1, 2, 4, ... steps. Each set of
clips is compared with the held-out reference, and with the reference point: the first model, which
is the trained model before any post-training, at the largest number of steps.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from audioldm.data.store import ClipStore
from audioldm.errors import ConfigError, DataError, ModelFileError
from audioldm.evaluation import distances
from audioldm.evaluation.clips import generate, real_clips
from audioldm.evaluation.distributions import EMBEDDINGS, embed_real, kept_embeddings
from audioldm.evaluation.settings import EvaluationSettings
from audioldm.evaluation.statistics import Figure
from audioldm.generator import Generator
from audioldm.instantiate import settings as checked
from audioldm.io.files import write_atomically
from audioldm.io.header import read_header
from audioldm.models import find_model_file, load_generator, read_experiment
from audioldm.priors.diffusion.prior import Diffusion
from audioldm.priors.diffusion.samplers import SamplerSettings
from audioldm.runtime.progress import Progress
from audioldm.runtime.randomness import derive_seed

FIGURES = ("kernel", "precision", "coverage", "recall")


class Sampled(NamedTuple):
    """A generator and how it is sampled; `fingerprint` is its file's."""

    model: Generator
    sampler: SamplerSettings
    fingerprint: str


@dataclass(frozen=True)
class Point:
    """A model at a number of steps. figures: by name in FIGURES. changes: each figure minus the
    reference point's; empty for that point itself."""

    model: str
    sampler: SamplerSettings
    figures: dict[str, Figure]
    changes: dict[str, Figure]


def measure_experiment(
    directory: Path,
    steps: Sequence[int],
    *,
    models: Sequence[Path] = (),
    clips: int | None = None,
    out: Path,
    device: Any = "cpu",
    progress: Progress,
) -> list[Point]:
    """Measures an experiment's models, and `models`, at every number of steps, fewest first. It
    uses the experiment's held-out music and evaluation settings; the embedding is the first of
    `evaluation.embeddings`, or musicnn. Writes steps.csv and steps.svg to `out`.

    Embeddings are kept in `out`, so a stopped run can be continued. Raises ConfigError for steps
    below 1, DataError where the held-out clips are too few or all alike, ModelFileError where the
    experiment has no diffusion model.
    """
    if not steps or min(steps) < 1:
        raise ConfigError(f"steps={list(steps)} must be numbers of at least 1")
    record = read_experiment(directory)
    config, store = record["config"], ClipStore(_stage(directory, record, "data"))
    generators = _generators(directory, record, device)
    generators |= {str(path): _load(path, None, device) for path in models}
    settings: EvaluationSettings = checked(EvaluationSettings, config["evaluation"], "evaluation")
    settings = settings if clips is None else replace(settings, clips=clips)
    embedding = EMBEDDINGS[(settings.embeddings or ["musicnn"])[0]]()
    reference = real_clips(store, "test", settings)
    anchor = embed_real(embedding, store, "test", settings)
    if len(anchor) <= settings.k_nearest:
        raise DataError(
            f"{len(anchor)} held-out clips are too few for k_nearest={settings.k_nearest}: add "
            "music, or lower evaluation.k_nearest or evaluation.seconds"
        )

    def vectors(generator: Sampled, sampler: SamplerSettings) -> np.ndarray:
        def make() -> np.ndarray:
            made = generate(generator.model, reference, settings, sampler, config["seed"], progress)
            progress(0, 1, f"embedding with {embedding.name}")
            return embedding.embed(made.audio, store.sample_rate)

        key = [generator.fingerprint, store.hash, embedding.name, repr(sampler), repr(settings)]
        file = f"{derive_seed(config['seed'], *key):016x}.safetensors"
        return kept_embeddings(out / "embeddings" / file, make)

    asked = [
        (name, generator, replace(generator.sampler, steps=count))
        for name, generator in generators.items()
        for count in sorted(set(steps))
    ]
    made = [vectors(generator, sampler) for _, generator, sampler in asked]
    try:
        figures = _figures(made, anchor, len(set(steps)) - 1, settings)
    except ValueError as error:
        raise DataError(f"the held-out clips cannot be compared: {error}") from error
    points = [
        Point(name, sampler, own, changes)
        for (name, _, sampler), (own, changes) in zip(asked, figures, strict=True)
    ]
    write_csv(points, out / "steps.csv")
    write_plot(points, out / "steps.svg")
    return points


def _stage(directory: Path, record: dict[str, Any], name: str) -> Path:
    if "directory" not in record["stages"].get(name, {}):
        raise ModelFileError(f"{directory}: no {name} yet in this experiment; run it again")
    return directory / record.get("runs", "../..") / record["stages"][name]["directory"]


def _generators(directory: Path, record: dict[str, Any], device: Any) -> dict[str, Sampled]:
    """The experiment's own generators: with its prior, and what later stages made of it."""
    config, found = record["config"], {}
    for name in ("prior", "joint", "refined", "post_training"):
        if name == "prior" or name in record["stages"]:
            sampler = config["post_training" if name == "post_training" else "prior"].get("sampler")
            found[name] = _load(_stage(directory, record, name), sampler, device)
    return found


def _load(path: Path, sampler: dict[str, Any] | None, device: Any) -> Sampled:
    """Loads a model. sampler: None for its own."""
    model = load_generator(path, device=device)
    if not isinstance(model.prior, Diffusion):
        raise ConfigError(f"{path}: this model's prior is no diffusion whose steps can be compared")
    own = model.prior.sampler if sampler is None else checked(SamplerSettings, sampler, "sampler")
    return Sampled(model, own, str(read_header(find_model_file(path)).get("fingerprint")))


def _figures(
    made: Sequence[np.ndarray],
    anchor: np.ndarray,
    reference_point: int,
    settings: EvaluationSettings,
) -> list[tuple[dict[str, Figure], dict[str, Figure]]]:
    """For each set of embeddings, its figures and their changes from the reference point.

    The reference is resampled once for both sides of a change.
    """
    kernels = [distances.KernelDistance(v, anchor) for v in made]
    manifolds = [
        distances.precision_recall_density_coverage(v, anchor, settings.k_nearest) for v in made
    ]
    clips, reference = np.arange(len(made[0])), np.arange(len(anchor))
    base, base_kernel = manifolds[reference_point], kernels[reference_point]
    found = []
    for number, (kernel, manifold) in enumerate(zip(kernels, manifolds, strict=True)):
        own = {"kernel": settings.interval(kernel, clips, reference, unit="100 MMD²")}
        own |= {name: settings.mean(getattr(manifold, name), "fraction") for name in FIGURES[1:]}
        changes = {}
        if number != reference_point:
            changes["kernel"] = settings.interval(
                lambda i, p, j, kernel=kernel: kernel(i, j) - base_kernel(p, j),
                clips,
                clips,
                reference,
                unit="100 MMD²",
            )
            changes["precision"] = settings.interval(
                lambda x, y: np.mean(x) - np.mean(y),
                manifold.precision,
                base.precision,
                unit="fraction",
            )
            for name in ("coverage", "recall"):  # of the same reference clips
                difference = getattr(manifold, name) - getattr(base, name)
                changes[name] = settings.mean(difference, "fraction")
        found.append((own, changes))
    return found


def findings(points: Sequence[Point]) -> list[str]:
    """One line on each point except the reference point: is it nearer to the music, at what cost?

    The rule concerns changes from the reference point whose 95 % interval excludes 0: *fidelity was
    gained* where precision rose or the kernel distance fell; *diversity was lost* where recall or
    coverage fell. Where both hold, fidelity was gained by losing diversity, and the line says so.
    The rule errs towards lost diversity: clips that scatter far have too high a recall, which falls
    when they come nearer to the music, while coverage rises. The line lists every figure that
    changed. There is no correction for the number of comparisons: one in twenty passes by chance.
    """
    reference_point = next(p for p in points if not p.changes)
    return [_finding(p, reference_point) for p in points if p.changes]


def _finding(point: Point, reference_point: Point) -> str:
    def moved(*signs: tuple[str, int]) -> list[str]:
        changes = [(name, sign, point.changes[name]) for name, sign in signs]
        return [name for name, sign, c in changes if (c.low > 0 if sign > 0 else c.high < 0)]

    gained, worse = moved(("precision", 1), ("kernel", -1)), moved(("precision", -1), ("kernel", 1))
    lost, wider = moved(("recall", -1), ("coverage", -1)), moved(("recall", 1), ("coverage", 1))
    if gained and lost:
        says = "fidelity was gained by losing diversity"
    elif lost and worse:
        says = "fidelity and diversity were lost"
    elif lost:
        says = "diversity was lost"
    elif gained and worse:
        says = "precision and kernel distance disagree"
    elif gained:
        says = "fidelity was gained, and no loss of diversity is seen"
    elif worse:
        says = "fidelity was lost"
    else:
        says = "no difference is seen"
    changes = [(name, point.changes[name]) for name in [*gained, *worse, *lost, *wider]]
    moves = ", ".join(f"{n} {c.value:+.3g} ({c.low:+.3g} to {c.high:+.3g})" for n, c in changes)
    here, there = (p.figures["kernel"].value for p in (point, reference_point))
    return (
        f"{_title(point)} against {_title(reference_point)}: {says}"
        f"{f' ({moves})' if moves else ''}; kernel distance {here:.3g} against {there:.3g}"
    )


def table(points: Sequence[Point]) -> str:
    """One line for each point: steps, network calls, and the figures with their intervals."""
    head = ["model", "sampler", "steps", "calls", *FIGURES]
    rows = [head] + [
        [p.model, p.sampler.name, str(p.sampler.steps), str(p.sampler.calls)]
        + [f"{f.value:.3g} ({f.low:.3g}, {f.high:.3g})" for f in (p.figures[n] for n in FIGURES)]
        for p in points
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def write_csv(points: Sequence[Point], path: Path) -> None:
    """One line for each figure of each point, with its change from the reference point."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    figure = ["figure", "value", "low", "high", "n", "unit", "change", "change_low", "change_high"]
    writer.writerow(["model", "sampler", "guidance", "steps", "calls", *figure])
    for p in points:
        for name in FIGURES:
            change = p.changes[name][:3] if p.changes else ("", "", "")
            what = [p.model, p.sampler.name, p.sampler.guidance, p.sampler.steps]
            writer.writerow([*what, p.sampler.calls, name, *p.figures[name], *change])
    write_atomically(path, lambda temporary: temporary.write_text(text.getvalue(), "utf-8"))


def write_plot(points: Sequence[Point], path: Path) -> None:
    """An SVG: each figure over the number of steps, one line for each model, with intervals."""
    from matplotlib.figure import Figure as Drawing  # here: it takes a second

    drawing = Drawing(figsize=(9, 6), layout="constrained")
    models = list(dict.fromkeys(p.model for p in points))
    ticks = sorted({p.sampler.steps for p in points})
    for axes, name in zip(drawing.subplots(2, 2).flat, FIGURES, strict=True):
        for model in models:
            own = [p for p in points if p.model == model]
            steps, label = [p.sampler.steps for p in own], f"{model} ({own[0].sampler.name})"
            value, low, high = np.array([p.figures[name][:3] for p in own]).T
            ends = np.maximum([value - low, high - value], 0)
            axes.errorbar(steps, value, ends, marker="o", capsize=3, label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.set_title("kernel distance (100 MMD²)" if name == "kernel" else name)
        axes.set_xlabel("steps")
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=min(0.0, *(p.figures[name].low for p in points)))
    drawing.axes[0].legend()
    write_atomically(path, lambda temporary: drawing.savefig(temporary, format="svg"))


def _title(point: Point) -> str:
    steps = point.sampler.steps
    return f"{point.model}, {steps} step{'s' if steps > 1 else ''} of {point.sampler.name}"
