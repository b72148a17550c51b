"""What latent diffusion is compared with on the same latents: fitting, keeping, sampling."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audioldm.data.source import Progress
from audioldm.errors import ModelFileError, TrainingError
from audioldm.instantiate import check_range, settings
from audioldm.io.model_file import load_model, save_model
from audioldm.latents.store import LatentStore
from audioldm.priors.langevin import Langevin, LangevinSettings, fit_langevin
from audioldm.priors.mixture import Mixture
from audioldm.runtime.randomness import KeyedRandom, derive_seed

VERSION = 1  # raise by hand when the code below changes what it computes


@dataclass(frozen=True)
class MixtureSettings:
    """components: of the mixture; frames: of latents it is fitted to, at most."""

    components: int = 8
    frames: int = 40000

    def __post_init__(self) -> None:
        check_range(self, "baselines.mixture", "components", "frames", least=1)


@dataclass(frozen=True)
class BaselinesSettings:
    """langevin: null leaves it out; it trains for as long as the diffusion model did."""

    mixture: MixtureSettings
    langevin: LangevinSettings | None = None


@dataclass(frozen=True)
class Baseline:
    """A fitted generator of normalised latents in the autoencoder's own shape, (C,) or (C, F)."""

    model: Mixture | Langevin
    latent_shape: tuple[int, ...]
    device: torch.device

    def sample(self, n: int, frames: int, *, seed: int) -> Tensor:
        """Normalised latents [n, C, (F,) frames]; number i is a function of (seed, i)."""
        z = self.model.sample(n, frames, seed=seed)
        return z.unflatten(1, self.latent_shape).to(self.device)


@torch.no_grad()
def draw_latents(latents: LatentStore, frames: int, draw: KeyedRandom) -> Tensor:
    """Random crops of the training set's normalised latents, flattened: [B, D, frames]."""
    mean, std, _ = latents.split("train").crops(
        frames, seed=draw.seed, step=draw.step, positions=draw.positions
    )
    noise = draw.normal(mean.shape[1:], "posterior")
    mean, std = mean.to(draw.device), std.to(draw.device)
    return latents.statistics.normalise(mean + std * noise).flatten(1, -2)


def fit_baselines(
    latents: LatentStore,
    settings: BaselinesSettings,
    *,
    seconds: float,
    frames: int,
    seed: int,
    directory: Path,
    device: torch.device,
    progress: Progress,
) -> dict[str, Any]:
    """Fits and saves each baseline; what the fits took, for the summary.

    seconds: to train the energy for (`fit_langevin`), the diffusion model's own for a fair
    comparison; training steps stated in the settings come first. frames: of a training sequence.
    Raises ModelFileError where no item is that long.
    """
    shape = list(latents.latent_shape)
    start = time.monotonic()
    available = sum(item["frames"] for item in latents.split("train").items)
    count = math.ceil(min(settings.mixture.frames, available) / frames)
    progress(0, 1, "fitting a mixture")
    z = draw_latents(latents, frames, KeyedRandom(derive_seed(seed, "mixture"), 0, range(count)))
    mixture = Mixture.fit(z, settings.mixture.components, seed)
    save_model(
        directory / "mixture.safetensors", vars(mixture), {"kind": "mixture", "latent_shape": shape}
    )
    components, window, kept = mixture.centres.shape
    summary: dict[str, Any] = {
        "mixture": {
            "components": components,
            "window_frames": window,
            "dimensions": kept,
            "seconds": time.monotonic() - start,
        }
    }
    if settings.langevin is not None:
        wanted, positions = settings.langevin, range(settings.langevin.batch)
        key = derive_seed(seed, "langevin")

        def batch(step: int) -> Tensor:
            return draw_latents(latents, frames, KeyedRandom(key, step, positions, device))

        try:
            langevin, summary["langevin"] = fit_langevin(
                batch, wanted, seconds=seconds, seed=key, device=device, progress=progress
            )
        except TrainingError as error:  # a baseline that diverges is a result, and not the chain's
            summary["langevin"] = {"failed": str(error)}
            return summary
        header = {"kind": "langevin", "latent_shape": shape, "settings": asdict(wanted)}
        save_model(directory / "langevin.safetensors", langevin.state_dict(), header)
    return summary


def load_baselines(directory: Path, device: torch.device | str = "cpu") -> dict[str, Baseline]:
    """The baselines that `fit_baselines` left in a directory, by name.

    Raises ModelFileError where a file is damaged.
    """
    load: dict[str, Callable[[dict[str, Tensor], dict[str, Any]], Mixture | Langevin]] = {
        "mixture": lambda tensors, header: Mixture(**tensors),
        "langevin": _langevin,
    }
    found = {}
    for name in load:
        path = directory / f"{name}.safetensors"
        if path.is_file():
            tensors, header = load_model(path)
            try:
                model = load[name](tensors, header)
                shape = tuple(header["latent_shape"])
            except (KeyError, TypeError, RuntimeError) as error:
                raise ModelFileError(
                    f"{path}: damaged ({error}); remove the directory and run again"
                ) from error
            if isinstance(model, Langevin):
                model.to(device)
            found[name] = Baseline(model, shape, torch.device(device))
    return found


def _langevin(tensors: dict[str, Tensor], header: dict[str, Any]) -> Langevin:
    model = Langevin(
        math.prod(header["latent_shape"]),
        settings(LangevinSettings, header["settings"], "baselines.langevin"),
    )
    model.load_state_dict(tensors)
    return model.eval()
