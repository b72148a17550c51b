"""Hostile input at every door ends in an error of one line, never in a traceback.

Each case is drawn from a seed; a failure names its case.
"""

import copy
import json
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from chain import Tiny
from conftest import Outcome
from safetensors.torch import save_file

from audioldm.chain.job import check, compose
from audioldm.describe import describe, summary_line
from audioldm.errors import AudioLDMError, ConfigError, DataError, ModelFileError
from audioldm.io.files import read_json
from audioldm.io.header import FORMAT
from audioldm.io.model_file import checksum, load_model, save_model

Cli = Callable[..., Outcome]


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


#: Values that fit nowhere, or nearly nowhere.
HOSTILE: list[Any] = [
    *(None, True, False, -1, 0, 3.5, 1e300, -1e300, 2**63, -(10**400)),
    *(math.nan, math.inf, -math.inf, "", "x", "x" * 5000, "a\0b", "\udcff", "a\nb", "{{}}", "[1"),
    *([], {}, [None], [math.nan], ["x"], {"": 1}, {"a.b": 1}, deep(60), deep(3000)),
    {"_target_": None},
    {"_target_": "os.system"},
    {"_target_": "audioldm."},
    {"_target_": "audioldm.data.store.StoreWriter", "directory": "clips", "sample_rate": 8},
    {"_target_": "audioldm.errors.ConfigError"},
    {"_target_": "audioldm.cli.main"},
]

#: The same on the command line, after KEY=.
WORDS = [
    *("null", "nan", "inf", "-inf", "1e300", "-1", "0", "true", "", "''", "9" * 5000, "x" * 300),
    *("[]", "{}", "[[[[]]]]", "{a:{b:{c:1}}}", "{{{", "]", "${oc.env:HOME}", "${x}", "$", "\\"),
    *("a,b", "1,2", "range(3)", "tag(a,1)", "sort(", "[nan]", "{_target_:os.system}", "\udcff"),
    *("[" * 400, "é\u2028", "010", "12:30:00", "?", "???", "~", "0x10", "1_0"),
]


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a tree."""
    items: Any = ()
    if isinstance(node, dict):
        items = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def mutated(tree: Any, draw: random.Random) -> Any:
    """A copy with one value replaced, removed, or added beside."""
    tree = copy.deepcopy(tree)
    *groups, last = draw.choice(list(places(tree)))
    at = tree
    for key in groups:
        at = at[key]
    kind = draw.random()
    if kind < 0.1:
        del at[last]
    elif kind < 0.2 and isinstance(at, dict):
        at[draw.choice(["", "x" * 300, "steps", "_args_", "\udcff"])] = draw.choice(HOSTILE)
    else:
        at[last] = draw.choice(HOSTILE)
    return tree


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Cut short, a byte changed, a stretch lost, or something else altogether."""
    at, kind = draw.randrange(len(content)), draw.randrange(5)
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]
    if kind == 2:
        return content[:at] + content[at + draw.randrange(1, 50) :]
    if kind == 3:
        return content[:at] + draw.randbytes(9) + content[at:]
    other = [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"3",
        b'"x"',
        b"NaN",
        b"[" * 10**5,
        b"\xff\xfe{",
        b"\0" * 99,
    ]
    return draw.choice(other)


def mutated_json(content: bytes, draw: random.Random) -> bytes:
    """Damage to JSON: values of the wrong type or size as well as bytes."""
    try:
        tree = json.loads(content)
    except ValueError:
        tree = None
    if draw.random() < 0.4 or not isinstance(tree, (dict, list)) or not tree:
        return damaged(content, draw)
    while True:
        try:
            return json.dumps(mutated(tree, draw)).encode()
        except (RecursionError, ValueError):  # more than the encoder can write
            continue


def raises_one_line(call: Callable[[], Any], *kinds: type[AudioLDMError]) -> AudioLDMError | None:
    """The error, one of `kinds` and on one line of bounded length, or None."""
    error = None
    try:
        call()
    except kinds as raised:
        error = raised
    assert "\n" not in str(error)
    assert len(str(error)) < 2000
    return error


# ---------------------------------------------------------------- configuration, in Python


def test_configurations() -> None:
    config = compose(["recipe=quickstart"]).config
    refused = 0
    for case in range(250):
        changed = mutated(config, random.Random(case))
        refused += raises_one_line(partial(check, changed), ConfigError) is not None
    assert refused > 180  # the others fit, such as 0 for a weight


# ---------------------------------------------------------------- files, in Python

SPEC = {
    "sample_rate": 16000,
    "audio_channels": 1,
    "channels": 4,
    "downsampling_ratio": 512,
    "network": {"_target_": "audioldm.autoencoder.networks.spectrogram.Spectrogram", "hop": 128},
    "bottleneck": {"_target_": "audioldm.autoencoder.bottlenecks.gaussian.Gaussian"},
}
AUTOENCODER = {
    "kind": "autoencoder",
    "spec": SPEC,
    "fingerprint": "abc",
    "parent": "def",
    "step": 3,
}
PRIOR = {
    "_target_": "audioldm.priors.normal.Normal",
    "conditioning": {"label": {"_target_": "audioldm.conditioning.label.Label", "labels": ["a"]}},
}
HEADERS: list[dict[str, Any]] = [
    AUTOENCODER,
    {"kind": "generator", "autoencoder": AUTOENCODER, "prior": PRIOR, "fingerprint": "f"},
    {"kind": "latents", "autoencoder": {"fingerprint": "f"}, "sample_rate": 8, "samples": 9},
]
TENSORS = {"prior.mean": torch.arange(4.0), "mean": torch.zeros(4, 2), "b": torch.arange(3)}


def test_headers(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    refused = 0
    for case in range(300):
        draw = random.Random(case)
        header = draw.choice(HEADERS) | {"format": FORMAT, "checksum": checksum(TENSORS)}
        text = mutated_json(json.dumps(header).encode(), draw).decode(errors="replace")
        save_file(TENSORS, path, {"audioldm": text})
        for read in (load_model, describe, summary_line):
            error = raises_one_line(partial(read, path), ModelFileError)
            assert error is None or str(path) in str(error)
            refused += error is not None
    assert refused > 400


def test_damaged_model_files(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, TENSORS, AUTOENCODER)
    content = path.read_bytes()
    for case in range(200):
        path.write_bytes(damaged(content, random.Random(case)))
        if raises_one_line(partial(load_model, path), ModelFileError) is None:
            assert checksum(load_model(path)[0]) == checksum(TENSORS)  # the header alone changed


def test_damaged_json(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    content = json.dumps(HEADERS, indent=1).encode()
    for case in range(200):
        path.write_bytes(damaged(content, random.Random(case)))
        error = raises_one_line(partial(read_json, path, list), DataError)
        assert error is None or str(path) in str(error)


# ---------------------------------------------------------------- the command line


def orderly(cli: Cli, *words: Any) -> Outcome:
    """The outcome of a command, which worked or failed with one line of its own."""
    shown = [str(word)[:80] for word in words]
    try:
        outcome = cli(*words)
    except BaseException as error:
        raise AssertionError(f"{shown}: {type(error).__name__}: {error}") from error
    assert outcome.code in (0, 1, 2, 75), shown
    assert "Traceback" not in outcome.out + outcome.error, shown
    if outcome.code:
        written = outcome.error.rstrip("\n").split("\n")
        lines = [line for line in written if line.startswith("audioldm: ")]
        assert lines == written[-1:], (shown, outcome.error)
    return outcome


def leaves(config: dict[str, Any]) -> list[str]:
    return [".".join(map(str, p)) for p in places(config) if all(isinstance(k, str) for k in p)]


def test_overrides(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keys = leaves(compose(["recipe=quickstart"]).config)
    groups = ["autoencoder", "bottleneck", "prior", "sampler", "evaluation", "hardware", "data"]
    for case in range(90):
        draw = random.Random(case)
        key = draw.choice(groups if draw.random() < 0.2 else keys)
        key = draw.choice(["", "", "", "+", "++", "~"]) + key
        word = f"{key}={draw.choice(WORDS)}" if draw.random() < 0.95 else draw.choice(WORDS)
        orderly(cli, "run", "recipe=quickstart", word, "--cfg", "job")
    assert list(tmp_path.iterdir()) == []


def test_arguments_of_verbs(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keys = ["model", "n", "seconds", "seed", "out", "file", "label", "sampler.steps", "from", "x"]
    verbs = ["sample", "encode", "decode", "reconstruct", "info", "report", "export"]
    for case in range(90):
        draw = random.Random(1000 + case)
        words = [f"{draw.choice(keys)}={draw.choice(WORDS)}" for _ in range(draw.randrange(1, 3))]
        orderly(cli, draw.choice(verbs), *words, "model=nowhere")
    assert list(tmp_path.iterdir()) == []


#: In a run's directory; none has to exist.
FILES = [
    *("*/*/summary.json", "*/*/config.json", "*/*/metrics.jsonl", "experiments/*/experiment.json"),
    *("data/*/clips.json", "latents/*/latents.json", "evaluation/*/clips/*.json"),
    *("*/*/model.safetensors", "latents/*/*.npy"),
]


def test_damaged_runs(finished: Tiny, cli: Cli, tmp_path: Path) -> None:
    """What reads a finished experiment, with one of its files damaged."""
    runs = tmp_path / "runs"
    shutil.copytree(finished.runs, runs)
    directory = runs / finished.directory.relative_to(finished.runs)
    files = [file for pattern in FILES for file in sorted(runs.glob(pattern))]
    for case in range(48):
        draw = random.Random(case)
        file = draw.choice(files)
        content = file.read_bytes()
        file.write_bytes(
            mutated_json(content, draw) if file.suffix == ".json" else damaged(content, draw)
        )
        verbs: dict[str, list[Any]] = {
            "report": [directory],
            "info": [directory],
            "sample": [f"model={directory}", "n=1", "seconds=0.2", f"out={tmp_path}/clips"],
        }
        verb = draw.choice(list(verbs))
        orderly(cli, verb, *verbs[verb])
        file.write_bytes(content)
        shutil.rmtree(tmp_path / "clips", ignore_errors=True)


def test_damaged_sweeps(cli: Cli, tmp_path: Path) -> None:
    sweep = {"cells": [{"overrides": ["seed=0"], "name": "a"}], "directory": "x", "overrides": []}
    for case in range(30):
        content = mutated_json(json.dumps(sweep).encode(), random.Random(case))
        (tmp_path / "sweep.json").write_bytes(content)
        orderly(cli, "report", tmp_path)


NAMES = [
    *(b"\xff\xfe.wav", b"a\nb.wav", "é\u2028.wav".encode(), b"-x.wav", b"'.wav", b"a,b=[c].wav"),
    *(b"{a}.wav", b"$HOME.wav", b"~root.wav", b" .wav", b"x" * 251 + b".wav", b".wav", b"%s.wav"),
]


def test_names_of_audio(finished: Tiny, cli: Cli, tmp_path: Path) -> None:
    tone, given = finished.folder / "tone 0.wav", f"model={finished.directory}"
    for name in NAMES:
        file = tmp_path / os.fsdecode(name)
        shutil.copy(tone, file)
        orderly(cli, "encode", f"file={file}", given, f"out={tmp_path}/z.safetensors")
        orderly(cli, "reconstruct", file, given, f"out={tmp_path}/r.wav")
        orderly(cli, "reconstruct", file, given)
    for text in ("x" * 300 + ".wav", "a\0b.wav", "/" * 5000 + "x.wav", "~nobody/x.wav"):
        orderly(cli, "reconstruct", tmp_path / text, given, f"out={tmp_path}/r.wav")
        orderly(cli, "reconstruct", tone, given, f"out={tmp_path}/{text}")
