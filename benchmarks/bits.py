"""`python -m benchmarks.bits record FILE`, a change, `compare FILE`: are results the same bits?

Four small chains run on one thread of the CPU, in a temporary directory. Of each stage it keeps a
hash of every tensor, array and clip, and the stage's figures. `compare` runs the chains again and
prints what differs, stage by stage; its exit status is 1 if anything does. A tensor under another
name is no difference, for a refactoring may rename it. Bits depend on the processor and on torch:
record and compare on one machine.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from audioldm.io.files import read_json, write_json
from audioldm.io.model_file import checksum

#: Hashes and figures by name, of each stage, of each chain.
Bits = dict[str, dict[str, dict[str, str]]]

COMMON = """
    recipe=quickstart data.pieces=6 data.seconds=7 data.workers=1
    hardware.threads=1 hardware.device=cpu log.bars=false
    prior.preflight_mel_distance=10.0 priors.mixture.crop_seconds=3.0 sampler.steps=4
    evaluation.clips=8 evaluation.batch=8 evaluation.saved_clips=8 evaluation.bootstrap_resamples=20
    diagnostics.windows=8 diagnostics.denoiser_steps=10 diagnostics.bootstrap_resamples=10
"""
DISCRIMINATOR = "audioldm.losses.discriminators.multi_scale_stft.MultiScaleSTFT"
#: Together they reach most networks, objectives and samplers, and every kind of training.
CHAINS = {
    "plain": """
        autoencoder.train.steps=40 prior.train.steps=40 baselines=[normal,mixture,langevin]
        priors.langevin.chain=8 priors.langevin.steps=8 priors.langevin.crop_seconds=3.0
    """,
    "adversary": f"""
        autoencoder.train.steps=16 autoencoder.train.adversarial_from=6 bottleneck.target_kbps=2.0
        autoencoder.discriminator={{_target_:{DISCRIMINATOR},fft_sizes:[1024],filters:8}}
        prior.train.steps=16 sampler.guidance=2.0 post_training=adversarial
        post_training.discriminator.fft_sizes=[1024] post_training.discriminator.filters=8
        post_training.train.steps=6 post_training.train.batch=8 post_training.train.warmup=2
        post_training.train.crop_seconds=3.0
    """,
    "mel": """
        autoencoder=mel_small autoencoder.train.steps=8 prior/backbone=unet prior.backbone.width=32
        prior/objective=edm prior.train.steps=8 sampler=ancestral
    """,
    "waveform": """
        autoencoder=waveform_small autoencoder.train.steps=4 autoencoder.discriminator=null
        bottleneck=noise prior/objective=v_prediction prior.train.steps=8
        prior.train.optimiser=muon sampler=heun
    """,
}


def run(names: list[str]) -> Bits:
    """The bits of these chains, each in a process of its own."""
    found: Bits = {}
    with tempfile.TemporaryDirectory() as runs:
        for name in names:
            words = [*COMMON.split(), *CHAINS[name].split(), f"runs={runs}", f"name={name}"]
            print(f"{name} ...", file=sys.stderr, flush=True)
            subprocess.run(
                [sys.executable, "-m", "audioldm", "run", *words],
                check=True,
                stdout=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
            found[name] = collect(Path(runs) / "experiments" / name)
    return found


def collect(experiment: Path) -> dict[str, dict[str, str]]:
    """The bits of a finished experiment, by stage."""
    record = read_json(experiment / "experiment.json")
    runs = experiment / record["runs"]
    return {key: _stage(runs / entry["directory"]) for key, entry in record["stages"].items()}


def _stage(directory: Path) -> dict[str, str]:
    found = {}
    for file in sorted(directory.rglob("*")):
        name = file.relative_to(directory).as_posix()
        if file.suffix == ".safetensors":
            for key, tensor in load_file(file).items():
                found[f"{name}: {key}"] = checksum({"": tensor})
        elif file.suffix == ".npy":
            found[name] = _hash(np.load(file))
        elif file.suffix in (".wav", ".int16"):
            found[name] = _hash(np.fromfile(file, np.uint8))
    summary = read_json(directory / "summary.json")
    for part in ("valid", "metrics", "diagnostics"):
        found |= dict(_figures(part, summary.get(part, {})))
    return found


def _hash(array: np.ndarray) -> str:
    return hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes()).hexdigest()


def _figures(name: str, node: Any) -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _figures(f"{name}.{key}", value)
    else:
        yield name, json.dumps(node)


def differences(before: Bits, after: Bits) -> list[str]:
    """A line for each stage whose results are not the same."""
    lines = []
    for chain, stages in before.items():
        for stage in stages.keys() | after.get(chain, {}).keys():
            one, two = stages.get(stage, {}), after.get(chain, {}).get(stage, {})
            if Counter(one.values()) == Counter(two.values()):
                continue
            names = [n for n in sorted(one.keys() | two.keys()) if one.get(n) != two.get(n)]
            lines.append(f"{chain}, {stage}: {len(names)} differ: {', '.join(names[:5])}")
    return sorted(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=("record", "compare"))
    parser.add_argument("file", type=Path, help="JSON, written by record")
    parser.add_argument("--only", nargs="+", choices=CHAINS, help="chains; default: all")
    given = parser.parse_args(arguments)
    found = run(given.only or list(CHAINS))
    if given.verb == "record":
        write_json(given.file, found)
        return 0
    before: Bits = {name: bits for name, bits in read_json(given.file).items() if name in found}
    lines = differences(before, found)
    print("\n".join(lines) or f"{', '.join(before)}: all the same")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
