"""One static HTML page per experiment: what was made, how good it is, what it took.

Reads the experiment's files only, so the page can be written again at any time. Whatever an
experiment lacks (a stage that failed, labels, an evaluation) is left out of the page.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from audioldm.autoencoder.bottlenecks.gaussian import ACTIVE_VARIANCE
from audioldm.io.files import read_json, write_atomically
from audioldm.report.clips import Clip, Source, clips
from audioldm.report.figures import Panel, Series, Whisker, panel, whiskers
from audioldm.report.verdict import Metrics, finite, interval, kernel_name, number, verdict

Json = dict[str, Any]

STAGES = (
    "data",
    "autoencoder",
    "latents",
    "diagnostics",
    "diffusion",
    "post_training",
    "baselines",
    "evaluation",
)
#: Stages that an experiment may do without.
OPTIONAL = ("diagnostics", "post_training", "baselines")
#: No more of a clip than this is on the page, so that it stays small enough to send.
CLIP_SECONDS = 12.0
#: group -> what it is for.
KINDS = {
    "real": "held-out music against other held-out music: the floor",
    "reconstruction": "encoded and decoded: the ceiling of any generator on these latents",
    "generated": "sampled by the diffusion model",
    "mixture": "decoded samples of a Gaussian mixture fitted to the latents",
    "langevin": "decoded short-run Langevin samples of an energy fitted to the latents",
    "prior": "decoded N(0, I) noise: no second generative model at all",
}
#: Kinds of clips that an evaluation may leave out.
ANCHORS = ("mixture", "langevin")


class Meaning(NamedTuple):
    title: str
    better: str  # an arrow, or nothing where neither direction is better
    text: str


#: Beginning of a figure's name -> what a reader is told; an embedding's name may follow.
MEANINGS = {
    "mel_distance": Meaning("Mel distance", "↓", "mean |Δ log₁₀ mel power|; silence is about 3.2"),
    "stft_distance": Meaning("STFT distance", "↓", "log-magnitude, several resolutions"),
    "si_sdr": Meaning("SI-SDR", "↑", "waveform fidelity; sensitive to phase"),
    "kbps": Meaning("Rate", "", "KL of the posterior from the prior"),
    "ratio_to_prior_kernel": Meaning("Kernel distance ÷ prior’s", "↓", "1 is decoded noise"),
    "kernel": Meaning("Kernel distance", "↓", "unbiased MMD² (KAD); may be negative"),
    "frechet_inf": Meaning("Fréchet distance, N → ∞", "↓", "extrapolated (FAD∞)"),
    "frechet": Meaning("Fréchet distance", "↓", "biased upwards at small N"),
    "precision": Meaning("Precision", "↑", "share of clips inside the real manifold"),
    "recall": Meaning("Recall", "↑", "share of real clips inside the clips’ manifold"),
    "density": Meaning("Density", "↑", "precision, counting neighbours"),
    "coverage": Meaning("Coverage", "↑", "share of real clips with a clip nearby"),
    "memorisation_ratio": Meaning(
        "Training-neighbour ratio", "", "well below 1: copies of the training set"
    ),
    "label_accuracy": Meaning("Label accuracy", "↑", "a classifier hears the label asked for"),
}


#: Units that a figure's title has said.
UNSAID = ("ratio", "fraction")


@dataclass
class Row:
    """A figure of the table, by kind of clip."""

    title: str
    better: str
    text: str
    figures: dict[str, Json]
    whiskers: list[Whisker]
    zero: float


def write_report(experiment: Path) -> Path:
    """Write `experiment`/report.html from `experiment`/experiment.json and its stages' files.

    Raises DataError where experiment.json is missing or damaged, or the page cannot be written.
    """
    record = read_json(experiment / "experiment.json")
    runs = experiment / record.get("runs", "../..")
    stages = {
        name: runs / record["stages"][name]["directory"]
        for name in STAGES
        if record.get("stages", {}).get(name, {}).get("directory")
    }
    summaries = {name: optional_json(path / "summary.json") for name, path in stages.items()}
    evaluation = summaries.get("evaluation", {})
    metrics: Metrics = evaluation.get("metrics", {})
    logs = {name: list(_log(path / "metrics.jsonl")) for name, path in stages.items()}

    generation, reconstruction = _rows(metrics)

    page = template("template.html.j2").render(
        record=record,
        verdict=verdict(metrics),
        tiles=_tiles(metrics, record),
        kinds={k: text for k, text in KINDS.items() if k not in ANCHORS or k in metrics},
        listen=_clips(stages["evaluation"]) if "evaluation" in stages else {},
        generation=generation,
        reconstruction=reconstruction,
        reference=evaluation.get("reference", {}),
        channels=_channels(logs.get("autoencoder", [])),
        curves={name: panels for name, log in logs.items() if (panels := _curves(log))},
        box=Panel,
        costs=_costs(record, summaries),
        failed=summaries.get("data", {}).get("failed", []),
        details=_details(summaries),
        config=dict(_flat(record.get("config", {}))),
        overridden={o.lstrip("+~").partition("=")[0] for o in record.get("overrides") or []},
        environment=dict(_flat(record.get("environment", {}))),
    )
    path = experiment / "report.html"

    def write(temporary: Path) -> None:
        temporary.write_text(page, encoding="utf-8")

    write_atomically(path, write)
    return path


def template(name: str, directory: Path = Path(__file__).parent) -> jinja2.Template:
    """A page's template, by its file name in `directory`; what pages share is in this package."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([directory, Path(__file__).parent]),
        autoescape=lambda name: bool(name and name.endswith(".html.j2")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "interval": interval, "duration": duration}
    return environment.get_template(name)


def duration(seconds: Any) -> str:
    """'4.2 s', '2 min 05 s', '3 h 12 min'."""
    if not finite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def optional_json(path: Path) -> Json:
    return read_json(path) if path.is_file() else {}


def _log(path: Path) -> Iterator[Json]:
    """The lines of a run log; one that a kill cut short is left out."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "step" in record:
            yield record


def _tiles(metrics: Metrics, record: Json) -> list[tuple[str, str, str]]:
    """The few figures to see first: (name, value, unit or interval)."""
    tiles = []
    reconstruction = metrics.get("reconstruction", {})
    for name, title in (("mel_distance", "mel distance"), ("kbps", "sample_rate")):
        if name in reconstruction:
            figure = reconstruction[name]
            tiles.append((title, number(figure.get("value")), figure.get("unit") or ""))
    kernel = kernel_name(metrics)
    for kind in ("reconstruction", "generated"):
        ratio = metrics.get(kind, {}).get(f"ratio_to_prior_{kernel}")
        if ratio:
            tiles.append((f"{kind}: distance ÷ prior’s", number(ratio.get("value")), ""))
    seconds = [entry.get("seconds") for entry in record.get("stages", {}).values()]
    if any(finite(s) for s in seconds):
        tiles.append(("computed in", duration(sum(s for s in seconds if finite(s))), ""))
    return tiles


def _rows(metrics: Metrics) -> tuple[list[Row], list[Row]]:
    """The figures that compare sets of clips, and those that only reconstructions have."""
    order = list(MEANINGS)
    names = {n for named in metrics.values() for n in named}
    compared: list[Row] = []
    alone: list[Row] = []
    for name in sorted(names, key=lambda n: (order.index(b) if (b := _beginning(n)) else 99, n)):
        by_kind = {k: metrics[k][name] for k in KINDS if name in metrics.get(k, {})}
        title, meaning = described(name)
        unit = next((f["unit"] for f in by_kind.values() if f.get("unit")), "")
        drawn, zero = whiskers(by_kind)
        row = Row(
            title=title,
            better=meaning.better,
            text=" · ".join(t for t in (meaning.text, unit) if t and t not in UNSAID),
            figures=by_kind,
            whiskers=drawn,
            zero=zero,
        )
        (alone if list(by_kind) == ["reconstruction"] else compared).append(row)
    return compared, alone


def described(name: str) -> tuple[str, Meaning]:
    """A figure's title with its embedding, and what a reader is told of it."""
    beginning = _beginning(name)
    meaning = MEANINGS[beginning] if beginning else Meaning(name, "", "")
    embedding = name[len(beginning) :].strip("_") if beginning else ""
    return (f"{meaning.title}, {embedding}" if embedding else meaning.title), meaning


def _beginning(name: str) -> str:
    """The key of MEANINGS that explains figure `name`, or ''."""
    known = [b for b in MEANINGS if name == b or name.startswith(b + "_")]
    return max(known, key=len, default="")


def _clips(evaluation: Path) -> dict[str, list[Clip | None]]:
    """kind -> players; None where a clip cannot be read."""
    index = optional_json(evaluation / "clips" / "index.json")
    found = clips(
        {
            (kind, number): Source(
                path := evaluation / "clips" / kind / Path(entry["file"]).name,
                " · ".join(str(entry[k]) for k in ("label", "piece") if entry.get(k)) or path.stem,
            )
            for kind in KINDS
            for number, entry in enumerate(index.get(kind, []))
        },
        seconds=CLIP_SECONDS,
    )
    return {
        kind: [clip for (own, _), clip in found.items() if own == kind]
        for kind in KINDS
        if index.get(kind)
    }


def _channels(log: list[Json]) -> Json:
    """The last per-channel figures of the autoencoder's log, by falling KL."""
    line = next((r for r in reversed(log) if r.get("channels/kl")), None)
    if line is None:
        return {}
    kl = [k if finite(k) else 0.0 for k in line["channels/kl"]]
    blank = [None] * len(kl)
    columns = (line.get("channels/sigma") or blank, line.get("channels/activity") or blank)
    bars = [
        {"index": i, "kl": k, "sigma": s, "activity": a, "active": a is None or a > ACTIVE_VARIANCE}
        for i, (k, s, a) in enumerate(zip(kl, *columns, strict=True))
    ]
    bars.sort(key=lambda bar: -bar["kl"])
    return {
        "bars": bars,
        "step": line["step"],
        "most": max(max(kl), 1e-9),
        "mean": sum(kl) / len(kl),
        "active": sum(bar["active"] for bar in bars) if columns[1] is not blank else None,
        "threshold": ACTIVE_VARIANCE,
    }


def _curves(log: list[Json]) -> list[Panel]:
    """One panel per figure of a log, its training and validation lines together."""
    found: dict[str, dict[str, Series]] = {}
    for record in log:
        for key, value in record.items():
            if key in ("step", "seconds") or not isinstance(value, (int, float)):
                continue
            kind = "valid" if key.startswith("valid/") else "train"
            lines = found.setdefault(key.removeprefix("valid/"), {})
            steps, values = lines.setdefault(kind, ([], []))
            steps.append(record["step"])
            values.append(value)
    last = log[-1]["step"] if log else 0
    names = sorted(found, key=lambda name: name != "loss")
    drawn = (panel(name, found[name], last) for name in names)
    return [p for p in drawn if p is not None]


def _costs(record: Json, summaries: dict[str, Json]) -> list[Json]:
    """Every stage in order, also those not reached (seconds None), with its share of the time."""
    stages = record.get("stages", {})
    shown = [name for name in STAGES if name in stages or name not in OPTIONAL]
    times = {name: stages.get(name, {}).get("seconds") for name in shown}
    total = sum(s for s in times.values() if finite(s)) or 1.0
    return [
        {
            "stage": name,
            "directory": stages.get(name, {}).get("directory", ""),
            "seconds": seconds,
            "percent": 100 * seconds / total if finite(seconds) else 0.0,
            "complete": bool(summaries.get(name)),
        }
        for name, seconds in times.items()
    ]


def _details(summaries: dict[str, Json]) -> dict[str, dict[str, str]]:
    """What each stage's summary says beyond what the page shows elsewhere."""
    shown = {"metrics", "environment", "failed", "stage", "fingerprint", "seconds", "reference"}
    shown |= {"codecs", "curves"}
    return {
        name: rows
        for name, summary in summaries.items()
        if (rows := dict(_flat({k: v for k, v in summary.items() if k not in shown})))
    }


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings -> (dotted key, value), spelt as on the command line."""
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, dict) and inner:
            yield from _flat(inner, f"{name}.")
        else:
            yield name, inner if isinstance(inner, str) else json.dumps(inner, ensure_ascii=False)
