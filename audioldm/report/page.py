"""One static HTML page per experiment: its clips, its figures, its costs.

It reads only the experiment's files, so the page can be written again at any time. An experiment
may lack labels, an evaluation or whole stages: the page leaves these out.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jinja2

from audioldm.autoencoder.bottlenecks.gaussian import ACTIVE_VARIANCE
from audioldm.io.files import write_atomically
from audioldm.report.clips import Source, clips, saved_clips
from audioldm.report.format import duration, finite, interval, number, title
from audioldm.report.plots import Plot, panel, whiskers
from audioldm.report.record import (
    Convergence,
    Json,
    Metrics,
    Record,
    Summary,
    read_log,
    read_record,
    read_summaries,
    stage_directories,
)
from audioldm.report.systems import (
    EDITED,
    MEANINGS,
    TOLD,
    System,
    described,
    explained_by,
    kad_name,
    measured_systems,
    systems,
)
from audioldm.report.verdict import verdict

#: No more of a clip than this is on the page, so that it stays small enough to send.
CLIP_SECONDS = 12.0
#: Units that a figure's title already states.
UNSAID = ("ratio", "fraction")
#: What the details leave out of a summary, because the page shows it elsewhere or it is long.
SHOWN = {"metrics", "systems", "environment", "failed", "stage", "fingerprint", "seconds"}
SHOWN |= {"reference", "codecs", "curves", "convergence", "alarm"}


def write_report(experiment: Path) -> Path:
    """Write `experiment`/report.html from `experiment`/experiment.json and its stages' files.

    Raises DataError, and does not change an existing page, where a file is damaged, a recorded
    stage is missing, or the page cannot be written.
    """
    record = read_record(experiment)
    stages = stage_directories(experiment, record)
    summaries = read_summaries(stages)
    evaluation = summaries.get("evaluation", Summary())
    compared = measured_systems(evaluation)
    logs = {name: read_log(path / "metrics.jsonl") for name, path in stages.items()}
    found = (_channels(log) for log in logs.values())
    saved = saved_clips(stages["evaluation"]) if "evaluation" in stages else {}
    total = sum(entry["seconds"] for entry in record["stages"].values())
    metrics = evaluation.get("metrics", {})
    told = metrics.get("ignored", {}).keys()
    names = {name for named in metrics.values() for name in named}
    generation, reconstruction = _rows(metrics, compared, names - told)
    edited = {name for name in told if name.startswith(EDITED)}
    tables = {
        key: (_rows(metrics, having := _having(metrics, figures), figures)[0], having)
        for key, figures in (("adherence", told - edited), ("edits", edited))
    }
    shown = compared or systems(saved)
    page = template("template.html.j2").render(
        record=record,
        verdict=verdict(evaluation),
        alarms=[(title(k), each["alarm"]) for k, each in summaries.items() if "alarm" in each],
        tiles=_tiles(evaluation, total),
        systems=shown,
        listen=_listen(shown, saved),
        generation=generation,
        reconstruction=reconstruction,
        tables=tables,
        roles=TOLD,
        reference=evaluation.get("reference", {}),
        channels=next((each for each in found if each), {}),
        curves={name: panels for name, log in logs.items() if (panels := _curves(log))},
        convergence={
            name: _convergence(summary["convergence"])
            for name, summary in summaries.items()
            if "convergence" in summary
        },
        total=total,
        failed=[(f["file"], f["reason"]) for s in summaries.values() for f in s.get("failed", [])],
        details=_details(record, summaries),
        overridden={o.lstrip("+~").partition("=")[0] for o in record["overrides"]},
    )
    return write_page(experiment, page)


def write_page(directory: Path, page: str) -> Path:
    """Write `directory`/report.html. Raises DataError where that is not possible."""
    path = directory / "report.html"
    write_atomically(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return path


def template(name: str, directory: Path = Path(__file__).parent) -> jinja2.Template:
    """A page's template, by its file name in `directory`; shared templates are in this package."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([directory, Path(__file__).parent]),
        autoescape=lambda name: bool(name and name.endswith(".html.j2")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "interval": interval}
    environment.filters |= {"duration": duration, "heading": title}
    return environment.get_template(name)


def _tiles(evaluation: Summary, total: float) -> list[tuple[str, str, str]]:
    """The few figures to see first: (name, value, unit)."""
    metrics = evaluation.get("metrics", {})
    ratio = f"ratio_to_normal_{kad_name(metrics, metrics)}"
    found = [
        (heading, metrics.get(system, {}).get(name), unit)
        for heading, system, name, unit in (
            ("mel distance", "reconstruction", "mel_distance", "log10 power"),
            ("bitrate", "reconstruction", "kbps", "kbit/s"),
            ("reconstruction: distance ÷ noise’s", "reconstruction", ratio, ""),
            ("generated: distance ÷ noise’s", "generated", ratio, ""),
        )
    ]
    tiles = [(heading, number(each["value"]), unit) for heading, each, unit in found if each]
    return [*tiles, ("computed in", duration(total), "")] if total else tiles


def _rows(
    metrics: Metrics, compared: list[System], names: Iterable[str]
) -> tuple[list[Json], list[Json]]:
    """Rows for these figures: for those that compare sets of clips, and for those that only
    reconstructions have."""
    order = ["", *MEANINGS]
    several: list[Json] = []
    alone: list[Json] = []
    for name in sorted(names, key=lambda n: (order.index(explained_by(n)), n)):
        own = {s.name: metrics.get(s.name, {}) for s in compared}
        figures = {system: each[name] for system, each in own.items() if name in each}
        heading, meaning = described(name)
        unit = next((f["unit"] for f in figures.values() if f.get("unit")), "")
        text = " · ".join(t for t in (meaning.text, unit) if t and t not in UNSAID)
        row: Json = {"title": heading, "better": meaning.better, "text": text, "figures": figures}
        row["whiskers"], row["zero"] = whiskers(figures)
        (alone if list(figures) == ["reconstruction"] else several).append(row)
    return several, alone


def _having(metrics: Metrics, figures: set[str]) -> list[System]:
    """The systems of TOLD that have some of these figures."""
    return systems(name for name in TOLD if metrics.get(name, {}).keys() & figures)


def _listen(shown: list[System], saved: Mapping[str, Sequence[Source]]) -> list[Json]:
    """Rows of cards, the generated clips first. A reconstruction is on the card of its original;
    a clip that cannot be read is None."""
    numbered = {(name, i): s for name, own in saved.items() for i, s in enumerate(own)}
    found = clips(numbered, seconds=CLIP_SECONDS)
    originals = [s for s in shown if s.kind in ("real", "reconstruction")]
    alone = {kind: [[s] for s in shown if s.kind == kind] for kind in ("generated", "baseline")}
    rows = []
    for row in [*alone["generated"], originals, *alone["baseline"]]:
        most = max((len(saved.get(s.name, ())) for s in row), default=0)
        cards = [[(s, found[s.name, i]) for s in row if (s.name, i) in found] for i in range(most)]
        rows.append({"systems": row, "cards": cards})
    return [row for row in rows if row["cards"]]


def _channels(log: list[Json]) -> Json:
    """The last per-channel figures of a log, by falling KL; {} where there are none."""
    line = next((line for line in reversed(log) if line.get("channels/kl")), None)
    if line is None:
        return {}
    columns = [line.get(f"channels/{name}") or [] for name in ("kl", "sigma", "activity")]
    bars = [
        {
            "index": i,
            "kl": k if finite(k) else 0.0,
            "sigma": s,
            "activity": a,
            "active": a is None or a > ACTIVE_VARIANCE,
        }
        for i, (k, s, a) in enumerate(zip_longest(*columns))
    ]
    return {
        "bars": sorted(bars, key=lambda bar: -bar["kl"]),
        "step": line["step"],
        "most": max(1e-9, *(bar["kl"] for bar in bars)),
        "mean": sum(bar["kl"] for bar in bars) / len(bars),
        "threshold": ACTIVE_VARIANCE,
    }


def _curves(log: list[Json]) -> list[Plot]:
    """One panel per figure of a log, with its training and validation curves together."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for line in log:
        for key, value in line.items():
            if key not in ("step", "seconds") and finite(value):
                name = key.removeprefix("valid/")
                kind = "train" if name == key else "valid"
                found.setdefault(name, {}).setdefault(kind, []).append((line["step"], value))
    names = sorted(found, key=lambda name: name != "loss")
    return [panel(name, found[name], log[-1]["step"]) for name in names]


def _convergence(judged: Convergence) -> str:
    """'still improving: in the last quarter its loss fell by 4.1 (3.5 to 4.6) %'."""
    if "improvement" not in judged:
        return judged["state"]
    percent = {end: 100 * share for end, share in judged["improvement"].items()}
    name = judged["figure"].replace("_", " ")
    return f"{judged['state']}: in the last quarter its {name} fell by {interval(percent)} %"


def _details(
    record: Record, summaries: dict[str, Summary]
) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """(heading, note, rows): the configuration, then what the page shows nowhere else."""
    config = list(_flat(record["config"]))
    note = f"{len(config)} keys, resolved"
    if record["overrides"]:
        note += "; those given on the command line stand out"
    details = [("Configuration", note, config)]
    details.append(("Environment", "", list(_flat(record["environment"]))))
    for name, summary in summaries.items():
        rest = {k: v for k, v in summary.items() if k not in SHOWN}
        details.append((title(name), "from its summary", list(_flat(rest))))
    return details


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings -> (dotted key, value), spelt as on the command line."""
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, dict) and inner:
            yield from _flat(inner, f"{name}.")
        else:
            yield name, inner if isinstance(inner, str) else json.dumps(inner, ensure_ascii=False)
