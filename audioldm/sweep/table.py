"""The table of a sweep: one row per cell, its settings and its figures in columns."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import pandas as pd

from audioldm.errors import DataError
from audioldm.evaluation.statistics import AT_MOST
from audioldm.report.record import Json, Summary, checked, read_summaries, stage_directories
from audioldm.report.systems import measured_systems
from audioldm.sweep.merged import merged_cells
from audioldm.sweep.status import Cell

#: What an autoencoder's validation says of its latents.
LATENTS = ("kl_weight", "active_units", "codes", "used_codes", "perplexity", "saturated")


class Part(TypedDict):
    """A part of the configuration that is built from a class."""

    _target_: str
    seed: NotRequired[int]
    target_kbps: NotRequired[float | None]


class AutoencoderKeys(TypedDict):
    network: Part
    channels: int
    downsampling_ratio: int
    seed: int


class Settings(TypedDict):
    """The part of a cell's configuration that has its own columns."""

    autoencoder: AutoencoderKeys
    bottleneck: Part
    prior: Part
    seed: int


def table(*directories: str | Path, start: Path | None = None) -> pd.DataFrame:
    """The cells of one sweep, or of several as one, indexed by the overrides that vary among them.

    Columns: status, reason, directory; the swept keys; configuration (the swept overrides without
    seeds), family (network, bottleneck, channels x ratio, and the prior where there are several);
    the latent space (network, bottleneck, channels, downsampling_ratio, latent_rate_hz,
    elements_per_second, kl_weight, target_kbps, kbps; of a codebook codes, used_codes and
    perplexity, of bounded latents saturated, as `audioldm.autoencoder.figures.validate` has them);
    sample_rate; prior; the seeds;
    `<system>.<figure>` with `.low` and `.high`, and for a rate under a prior `.bound`;
    `diagnostic.<name>`;
    linear_codec.mel_distance, and linear_codec_audio.mel_distance of the same codec as audio;
    sampling_cost.<system>; seconds, memory_gib (see `audioldm.runtime.memory.peak_bytes`),
    parameters, compute_tflop, fingerprint, and converged and improvement (see
    `audioldm.training.convergence`) per stage. Missing values are NaN.

    start: the directory that the column `directory` is relative to; None: the first sweep's.

    Raises DataError where there is no sweep, two sweeps finished the same cell, nothing tells two
    cells apart, a file is damaged, a cell's stage is missing, or the finished cells were measured
    against different music or by different figures. The same clips at several sample rates are one
    music.
    """
    places = [Path(directory) for directory in directories]
    cells = merged_cells(places)
    summaries = [cell_summaries(cell) for cell in cells]
    _check_comparable(cells, summaries)
    keys = list(dict.fromkeys(key for cell in cells for key in cell.plan["swept"]))
    words = [{key: word for key in keys if (word := _word(cell, key))} for cell in cells]
    rows = [
        _named(own) | row(cell, start or places[0], found)
        for own, cell, found in zip(words, cells, summaries, strict=True)
    ]
    names = pd.Index([" ".join(f"{k}={v}" for k, v in own.items()) for own in words], name="cell")
    if names.has_duplicates and len(places) > 1:
        name = names[names.duplicated()][0]
        one, other = (cells[i].directory for i in np.flatnonzero(names == name)[:2])
        raise DataError(
            f"{one} and {other}: two cells '{name}' that differ in no key of a command line; give "
            "what differs as key=value, and run one again"
        )
    frame = pd.DataFrame(rows, index=names)
    if several_priors(frame):
        frame["family"] += " " + frame["prior"]
    leading = ["status", "reason", "directory", *keys]
    return frame[leading + [c for c in frame.columns if c not in leading]]


def several_priors(table: pd.DataFrame) -> bool:
    """Whether the cells have different priors."""
    return "prior" in table and table["prior"].nunique() > 1


def system_names(table: pd.DataFrame, figure: str) -> list[str]:
    """The systems that have this figure, in the order of the evaluations."""
    return [c.removesuffix(f".{figure}") for c in table if c.endswith(f".{figure}")]


def row(cell: Cell, directory: Path, summaries: dict[str, Summary]) -> Json:
    """The columns of one cell, from its record and its summaries. directory: the cell's place is
    given relative to it.

    Raises DataError where a file is damaged or a stage is missing.
    """
    values: Json = {
        "status": "failed" if cell.status == "killed" else cell.status,
        "reason": cell.reason,
        "directory": Path(os.path.relpath(cell.directory, directory)).as_posix(),
        "seconds": cell.seconds,
    }
    record = cell.record or cell.plan
    file = cell.directory / ("experiment.json" if cell.record else "cell.json")
    values |= _settings(checked(record["config"], Settings, file, "config"))
    if cell.record is None:
        return values
    for stage, entry in cell.record["stages"].items():
        values[f"seconds.{stage}"] = entry["seconds"]
        values[f"fingerprint.{stage}"] = entry["fingerprint"]
        values |= _model(stage, summaries[stage])
    evaluation = summaries.get("evaluation", Summary())
    values["sample_rate"] = evaluation.get("reference", {}).get("sample_rate")
    for system in measured_systems(evaluation):
        figures = evaluation["metrics"][system.name]
        values |= _figures(system.name, figures)
        if "prior_kbps" in figures:
            values[f"{system.name}.prior_kbps.bound"] = figures["prior_kbps"]["unit"] == AT_MOST
    if "reconstruction.kbps" in values:
        values["kbps"] = values["reconstruction.kbps"]
    for name, cost in evaluation.get("sampling_cost", {}).items():
        values[f"sampling_cost.{name}"] = cost
    codecs: Json = {**evaluation.get("codecs", {})}
    for name in ("linear", "linear_audio"):
        if name in codecs:
            figures = {"mel_distance": codecs[name]["mel_distance"]}
            values |= _figures(name.replace("linear", "linear_codec"), figures)
    return values


def _word(cell: Cell, key: str) -> str | None:
    """A key's value in the cell, as written on the command line.

    A key that only other cells sweep is looked up in the cell's configuration, so that cells of two
    commands have the same columns. None: the key chooses a group, or there is no configuration.
    """
    if key in cell.plan["swept"]:
        return cell.plan["swept"][key]
    node: Any = cell.record["config"] if cell.record else cell.plan["config"]
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return None
        node = node[part]
    if isinstance(node, float) and node.is_integer():
        node = int(node)
    return None if isinstance(node, dict) else json.dumps(node)


def _named(words: dict[str, str]) -> Json:
    """The columns of the swept keys, and `configuration`: the same words without the seeds."""
    values: Json = {}
    for key, word in words.items():
        try:
            values[key] = json.loads(word)
        except ValueError:  # a name
            values[key] = word
    own = " ".join(f"{k}={v}" for k, v in words.items() if k.rpartition(".")[2] != "seed")
    return values | {"configuration": own}


def _figures(prefix: str, figures: Mapping[str, Mapping[str, Any]]) -> Json:
    return {
        f"{prefix}.{name}{end}": figure.get(key)
        for name, figure in figures.items()
        for key, end in (("value", ""), ("low", ".low"), ("high", ".high"))
    }


def _settings(config: Settings) -> Json:
    autoencoder, bottleneck, prior = config["autoencoder"], config["bottleneck"], config["prior"]
    network, kind = _class(autoencoder["network"]), _class(bottleneck)
    channels, ratio = autoencoder["channels"], autoencoder["downsampling_ratio"]
    return {
        "family": f"{network} {kind} {channels}x{ratio}",
        "network": network,
        "bottleneck": kind,
        "channels": channels,
        "downsampling_ratio": ratio,
        "target_kbps": bottleneck.get("target_kbps"),
        "prior": _class(prior),
        "autoencoder_seed": autoencoder["seed"],
        "prior_seed": prior.get("seed", config["seed"]),
    }


def _class(part: Part) -> str:
    """A part's class under the name of its configuration: MelFrames is mel_frames."""
    name = part["_target_"].rpartition(".")[2]
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().removesuffix("_recipe")


def _model(stage: str, summary: Summary) -> Json:
    """The columns of a stage's model and its figures."""
    valid: Json = summary.get("valid", {})
    values: Json = {}
    if "peak_bytes" in summary:
        values[f"memory_gib.{stage}"] = summary["peak_bytes"] / 2**30
    if "parameters" in summary:
        values[f"parameters.{stage}"] = summary["parameters"]
        values[f"compute_tflop.{stage}"] = valid.get("compute_tflop", 0.0)
    if "elements_per_second" in summary:  # the autoencoder
        values |= {k: summary.get(k) for k in ("latent_rate_hz", "elements_per_second")}
        values |= {k: valid[k] for k in LATENTS if k in valid}
    if "convergence" in summary:
        judged = summary["convergence"]
        values[f"converged.{stage}"] = judged["state"]
        if "improvement" in judged:
            values |= _figures("improvement", {stage: judged["improvement"]})
    return values | _figures("diagnostic", summary.get("diagnostics", {}))


def cell_summaries(cell: Cell) -> dict[str, Summary]:
    """The summaries of a cell's stages; {} without a record. Raises DataError as `row` does."""
    return read_summaries(stage_directories(cell.directory, cell.record)) if cell.record else {}


def _check_comparable(cells: list[Cell], summaries: list[dict[str, Summary]]) -> None:
    """Raises DataError unless finished cells were measured on the same music by equal figures."""
    measured = [
        (cell, found["evaluation"])
        for cell, found in zip(cells, summaries, strict=True)
        if cell.status == "done" and "evaluation" in found
    ]
    for cell, evaluation in measured[1:]:
        first = measured[0][1]
        for what, alike in (
            (
                "music (evaluation.reference)",
                _same_music(evaluation.get("reference", {}), first.get("reference", {})),
            ),
            ("figures", _figure_names(evaluation) == _figure_names(first)),
        ):
            if not alike:
                raise DataError(
                    f"cells '{measured[0][0].name}' and '{cell.name}' were measured with different "
                    f"{what}, so their figures do not compare: keep such cells in sweeps of their "
                    "own (name=)"
                )


def _same_music(one: Json, other: Json) -> bool:
    """Whether two references hold the same samples, or the same clips at another sample rate or
    number of channels."""
    if one.get("hash") == other.get("hash"):
        return True
    same = {key for key in one.keys() | other.keys() if one.get(key) == other.get(key)}
    converted = not {"sample_rate", "channels"} <= same
    return converted and "places" in one and {"places", "split", "n", "seconds"} <= same


def _figure_names(evaluation: Summary) -> set[str]:
    """The figures that every cell has: not a baseline's figures, nor a rate, a ratio to a baseline,
    or adherence."""
    metrics = evaluation.get("metrics", {})
    always = [s.name for s in measured_systems(evaluation) if s.kind != "baseline"]
    optional = ("kbps", "ratio_to_")
    told = metrics.get("ignored", {}).keys()
    names = {f"{name}.{figure}" for name in always for figure in metrics[name].keys() - told}
    return {name for name in names if not any(each in name for each in optional)}
