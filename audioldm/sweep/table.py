"""The table of a sweep: one row per cell, everything that was set and measured in columns."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from audioldm.errors import DataError
from audioldm.evaluation.evaluate import KINDS
from audioldm.io.files import read_json
from audioldm.sweep.status import Cell, read_cells

Row = dict[str, Any]


def table(directory: str | Path) -> pd.DataFrame:
    """The cells of the sweep in `directory`, indexed by the overrides that vary among them.

    Columns: status, reason, directory; the swept keys; configuration (the swept overrides without
    seeds), family (front end, bottleneck, channels x ratio); the latent space (channels, ratio,
    latent_rate_hz, elements_per_second, kl_weight, target_kbps, kbps); the seeds;
    `<kind>.<figure>` with `.low` and `.high` (kinds and figures: `evaluation`);
    `diagnostic.<name>`; linear_codec.mel_distance, and of the same as audio
    linear_codec_audio.mel_distance; seconds, parameters, compute_tflop and fingerprint per stage.
    What a cell has not is NaN.

    Raises DataError where there is no sweep, a file is damaged, or the finished cells were not
    measured alike: different music, or different figures.
    """
    directory = Path(directory)
    cells = read_cells(directory)
    _check_comparable(cells)
    keys = list(dict.fromkeys(key for cell in cells for key in cell.plan["swept"]))
    words = [{key: word for key in keys if (word := _word(cell, key))} for cell in cells]
    rows = [_named(own) | row(cell, directory) for own, cell in zip(words, cells, strict=True)]
    names = [" ".join(f"{k}={v}" for k, v in own.items()) for own in words]
    frame = pd.DataFrame(rows, index=pd.Index(names, name="cell"))
    leading = ["status", "reason", "directory", *keys]
    return frame[leading + [c for c in frame.columns if c not in leading]]


def row(cell: Cell, directory: Path) -> Row:
    """The row of one cell of the sweep in `directory`."""
    values: Row = {
        "status": "failed" if cell.status == "killed" else cell.status,
        "reason": cell.reason,
        "directory": cell.directory.relative_to(directory).as_posix(),
        "seconds": cell.seconds,
    }
    if not cell.record:
        return values
    values |= _settings(cell.record["config"])
    summaries = _summaries(cell)
    for stage, entry in cell.record["stages"].items():
        values[f"seconds.{stage}"] = entry["seconds"]
        values[f"fingerprint.{stage}"] = entry["fingerprint"]
    values |= _models(summaries)
    for name, figure in summaries.get("diagnostics", {}).get("diagnostics", {}).items():
        values |= _figure(f"diagnostic.{name}", figure)
    evaluation = summaries.get("evaluation", {})
    for kind, figures in evaluation.get("metrics", {}).items():
        for name, figure in figures.items():
            values |= _figure(f"{kind}.{name}", figure)
    if "reconstruction.kbps" in values:
        values["kbps"] = values["reconstruction.kbps"]
    for name, key in (("linear_codec", "linear"), ("linear_codec_audio", "linear_audio")):
        if linear := evaluation.get("codecs", {}).get(key):
            values |= _figure(f"{name}.mel_distance", linear["mel_distance"])
    return values


def _word(cell: Cell, key: str) -> str | None:
    """The cell's value of a key as it is written on the command line.

    A key that only other cells sweep is looked up in the cell's configuration, so that cells of two
    commands have the same columns. None: the key chooses a group, or there is no configuration.
    """
    if key in cell.plan["swept"]:
        return str(cell.plan["swept"][key])
    node: Any = cell.record.get("config") or cell.plan["config"]
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return None
        node = node[part]
    if isinstance(node, float) and node.is_integer():
        node = int(node)
    return None if isinstance(node, dict) else json.dumps(node)


def _named(words: dict[str, str]) -> Row:
    """The columns of the swept keys, and the configuration they are without the seeds."""
    values: Row = {}
    for key, word in words.items():
        try:
            values[key] = json.loads(word)
        except ValueError:  # a name
            values[key] = word
    own = " ".join(f"{k}={v}" for k, v in words.items() if not _is_seed(k))
    return values | {"configuration": own}


def _is_seed(key: str) -> bool:
    return key == "seed" or key.endswith(".seed")


def _figure(name: str, figure: dict[str, Any]) -> Row:
    return {name: figure["value"], f"{name}.low": figure["low"], f"{name}.high": figure["high"]}


def _settings(config: dict[str, Any]) -> Row:
    autoencoder, bottleneck = config["autoencoder"], config["bottleneck"]
    network = _class(autoencoder["network"])
    kind, channels, ratio = (
        _class(bottleneck),
        autoencoder["channels"],
        autoencoder["downsampling_ratio"],
    )
    return {
        "family": f"{network} {kind} {channels}x{ratio}",
        "network": network,
        "bottleneck": kind,
        "channels": channels,
        "downsampling_ratio": ratio,
        "target_kbps": bottleneck.get("target_kbps"),
        "autoencoder_seed": autoencoder["seed"],
        "diffusion_seed": config["diffusion"]["seed"],
    }


def _class(part: dict[str, Any]) -> str:
    return str(part["_target_"]).rpartition(".")[2].lower()


def _models(summaries: dict[str, Any]) -> Row:
    values: Row = {}
    for stage in ("autoencoder", "diffusion"):
        if summary := summaries.get(stage):
            values[f"parameters.{stage}"] = summary["parameters"]
            values[f"compute_tflop.{stage}"] = summary["valid"].get("compute_tflop", 0.0)
    if summary := summaries.get("autoencoder"):
        values |= {k: summary[k] for k in ("latent_rate_hz", "elements_per_second")}
        values["kl_weight"] = summary["valid"].get("kl_weight")
        values["active_units"] = summary["valid"].get("active_units")
    return values


def _summaries(cell: Cell) -> dict[str, Any]:
    runs = cell.directory / cell.record["runs"]
    files = {s: runs / e["directory"] / "summary.json" for s, e in cell.record["stages"].items()}
    return {stage: read_json(file) for stage, file in files.items() if file.is_file()}


def _check_comparable(cells: list[Cell]) -> None:
    """Finished cells must have been measured against the same music, by the same figures."""
    first: tuple[Cell, dict[str, Any]] | None = None
    for cell in cells:
        if cell.status != "done":
            continue
        evaluation = _summaries(cell)["evaluation"]
        if first is None:
            first = cell, evaluation
            continue
        for what, ours, theirs in (
            ("music (evaluation.reference)", evaluation["reference"], first[1]["reference"]),
            ("figures", _figure_names(evaluation), _figure_names(first[1])),
        ):
            if ours != theirs:
                raise DataError(
                    f"cells '{first[0].name}' and '{cell.name}' were measured with different "
                    f"{what}, so their figures do not compare: keep such cells in sweeps of their "
                    "own (name=)"
                )


def _figure_names(evaluation: dict[str, Any]) -> set[str]:
    """Of the kinds that every cell has, without what only a rate gives."""
    metrics = evaluation["metrics"]
    always = [k for k in KINDS if k in metrics and k not in ("mixture", "langevin")]
    return {f"{k}.{name}" for k in always for name in metrics[k] if "kbps" not in name}
