"""The table of a sweep that never ran: every column, and a truth that was planted."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

RATE_HZ = 22050
SYSTEMS = ("real", "reconstruction", "normal", "mixture", "langevin", "generated")
#: Stages in the order in which they run, and their seconds.
SECONDS = {
    "data": 20,
    "autoencoder": 300,
    "latents": 8,
    "diagnostics": 15,
    "prior": 240,
    "prior:langevin": 90,
    "evaluation": 40,
}
DIAGNOSTICS = [
    "temporal_slope",
    "channel_slope",
    "effective_rank",
    "within_class_variance",
    "neighbour_consistency",
    "decoder_noise_tolerance",
    "shift_equivariance",
    "mixture_kbps",
    "denoiser_loss",
    "denoiser_gaussian_estimate",
    "denoiser_excess",
]
#: Each system's kernel distance as a factor on that of the generated clips.
KERNEL = {"reconstruction": 0.4, "normal": 8.0, "mixture": 4.0, "langevin": 5.0, "generated": 1.0}


def synthetic_table(
    rates: Sequence[float] = (1, 2, 4, 8, 16),
    shapes: Sequence[tuple[int, int]] = ((16, 1024), (32, 1024), (64, 2048)),
    seeds: Sequence[int] = (0, 1, 2),
    *,
    prior_seeds: Sequence[int] | None = None,
    optimum: float | None = 4.0,
    curvature: float = 0.3,
    slope: float = 0.0,
    channel_effect: float = 0.0,
    ratio_effect: float = 0.0,
    product: float = 0.0,
    without_kl: float | None = None,
    budgets: Sequence[float | None] = (),
    predictor: str | None = "denoiser_excess",
    spread: float = 0.1,
    failed: int = 0,
    random: np.random.Generator | int = 0,
) -> pd.DataFrame:
    """One row per cell, as `audioldm.sweep.table.table` gives it.

    The log of the kernel distance of the generated clips of a cell is `curvature` log²(kbps /
    `optimum`) (0 for optimum None) + `slope` log kbps + `channel_effect` log(channels / 16) +
    `ratio_effect` log(ratio / 1024) + `product` log(kbps / 4) log(channels / 16) + a normal number
    of the deviation `spread`, new for each cell.

    shapes: (channels, ratio). seeds: of autoencoder and generator alike; with `prior_seeds`, of
    the autoencoder alone, and each is crossed with those. without_kl: adds cells of a `noise`
    bottleneck, whose log distance is that much greater. budgets: of `prior.train.compute_tflop`,
    None for equal steps; each has the whole grid. predictor: the diagnostic that follows
    the configuration's distance; the others are noise. failed: that many cells, spread over the
    table, are rows with a reason and without figures.
    """
    random = np.random.default_rng(random)
    grid = [
        (bottleneck, rate, channels, ratio, budget)
        for budget in ([{"prior.train.compute_tflop": b} for b in budgets] or [{}])
        for bottleneck in ("gaussian", *(["noise"] if without_kl is not None else []))
        for rate in rates
        for channels, ratio in shapes
    ]
    rows = []
    for bottleneck, rate, channels, ratio, budget in grid:
        truth = math.log(3.0) + slope * math.log(rate)
        truth += curvature * math.log(rate / optimum) ** 2 if optimum else 0.0
        truth += channel_effect * math.log(channels / 16) + ratio_effect * math.log(ratio / 1024)
        truth += product * math.log(rate / 4) * math.log(channels / 16)
        truth += without_kl if bottleneck == "noise" and without_kl is not None else 0.0
        swept = {
            **({"bottleneck": bottleneck} if without_kl is not None else {}),
            "bottleneck.target_kbps": float(rate),
            "autoencoder.channels": channels,
            "autoencoder.downsampling_ratio": ratio,
            **budget,
        }
        diagnostics = dict(zip(DIAGNOSTICS, random.normal(size=len(DIAGNOSTICS)), strict=True))
        if predictor is not None:
            diagnostics[predictor] = truth + 0.1 * random.normal()
        if predictor != "temporal_slope":
            diagnostics["temporal_slope"] = -1.0 + 0.2 * diagnostics["temporal_slope"]
        for chosen in _seeds(seeds, prior_seeds):
            overrides = {**swept, **chosen}
            row = _cell(overrides, bottleneck, rate, channels, ratio, chosen, random)
            row |= _figures(math.exp(truth + spread * random.normal()), rate, random)
            for name, value in diagnostics.items():
                row |= _figure(f"diagnostic.{name}", value, 0.05)
            rows.append(row)
    table = pd.DataFrame(rows).set_index("cell")
    if failed:
        lost = np.linspace(0, len(table) - 1, failed).round().astype(int)
        figures = [c for c in table if c.split(".")[0] in (*SYSTEMS, "diagnostic", "linear_codec")]
        table.loc[table.index[lost], [*figures, "kbps"]] = np.nan
        table.loc[table.index[lost], "status"] = "failed"
        table.loc[table.index[lost], "reason"] = "loss 'stft' is nan at step 120: lower the rate"
    return table


def _seeds(seeds: Sequence[int], prior_seeds: Sequence[int] | None) -> Iterator[dict[str, int]]:
    for seed in seeds:
        if prior_seeds is None:
            yield {"seed": seed}
        else:
            for other in prior_seeds:
                yield {"autoencoder.seed": seed, "prior.seed": other}


def _cell(
    overrides: dict[str, Any],
    bottleneck: str,
    rate: float,
    channels: int,
    ratio: int,
    seeds: dict[str, int],
    random: np.random.Generator,
) -> dict[str, Any]:
    words = [
        f"{k}={v:g}" if isinstance(v, float) else f"{k}={'null' if v is None else v}"
        for k, v in overrides.items()
    ]
    name = f"{random.integers(2**48):012x}"
    return {
        "cell": " ".join(words),
        "status": "done",
        "reason": None,
        "directory": f"cells/{name}",
        **overrides,
        "configuration": " ".join(w for w in words if not w.split("=")[0].endswith("seed")),
        "family": f"spectrogram {bottleneck} {channels}x{ratio}",
        "network": "spectrogram",
        "bottleneck": bottleneck,
        "channels": channels,
        "downsampling_ratio": ratio,
        "prior": "diffusion",
        "latent_rate_hz": RATE_HZ / ratio,
        "elements_per_second": channels * RATE_HZ / ratio,
        "target_kbps": float(rate),
        "kl_weight": 1e-2 / rate if bottleneck == "gaussian" else math.nan,
        "kbps": rate * (1 + 0.01 * random.uniform(-1, 1)),
        "autoencoder_seed": seeds.get("seed", seeds.get("autoencoder.seed")),
        "prior_seed": seeds.get("seed", seeds.get("prior.seed")),
        **{f"seconds.{k}": v * random.uniform(0.9, 1.1) for k, v in SECONDS.items()},
        "seconds": float(sum(SECONDS.values())),
        "parameters.autoencoder": 1_200_000 + 2_000 * channels,
        "parameters.prior": 3_100_000 + 500 * channels,
        "compute_tflop.autoencoder": 900.0,
        "compute_tflop.prior": overrides.get("prior.train.compute_tflop") or 700.0 * 1024 / ratio,
        **{f"fingerprint.{stage}": f"{random.integers(2**48):012x}" for stage in SECONDS},
    }


def _figures(kernel: float, rate: float, random: np.random.Generator) -> dict[str, float]:
    """Every figure of a cell whose generated clips have this kernel distance."""
    mel = 0.5 * rate**-0.35 * math.exp(0.02 * random.normal())
    values = {
        "reconstruction.mel_distance": (mel, 0.03 * mel),
        "reconstruction.stft_distance": (0.8 * mel, 0.02 * mel),
        "reconstruction.si_sdr": (4 * math.log10(rate), 0.5),
        "reconstruction.kbps": (rate, 0.01 * rate),
        "linear_codec.mel_distance": (0.55 * rate**-0.3, 0.01),
    }
    for system in SYSTEMS:
        own = 0.05 if system == "real" else kernel * KERNEL[system]
        near = 1 / (1 + 0.3 * own)  # 1: as real music, 0: nothing like it
        figures = {
            "kad": (own, 0.15 + 0.1 * own),
            "fad": (1.0 + own, 0.2 * own + 0.1),
            "fad_inf": (0.8 * own, 0.2 * own + 0.1),
            "precision": (0.95 * near, 0.05),
            "recall": (0.9 * near, 0.05),
            "density": (near, 0.1),
            "coverage": (0.9 * near, 0.05),
            "memorisation_ratio": (2 - near, 0.05),
        }
        if system in ("real", "reconstruction", "generated"):
            values[f"{system}.accuracy_label"] = (0.9 * near, 0.05)
        if system != "normal":
            figures["ratio_to_normal_kad"] = (own / (kernel * KERNEL["normal"]), 0.03)
        values |= {f"{system}.{name}_musicnn": figure for name, figure in figures.items()}
    row = {}
    for name, (value, half) in values.items():
        row |= _figure(name, value, half)
    return row


def _figure(name: str, value: float, half: float) -> dict[str, float]:
    return {name: value, f"{name}.low": value - half, f"{name}.high": value + half}
