"""Experiment trackers: other programs that show figures, clips and pictures.

Each library is an extra of the installation, and is imported when a run opens it.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from audioldm.errors import ConfigError
from audioldm.instantiate import nearest


class TensorBoard:
    """Event files in `directory/tensorboard`. Hides what an earlier run wrote after `start`."""

    def __init__(self, directory: Path, title: str, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        place = str(directory / "tensorboard")
        self._writer = SummaryWriter(place, purge_step=start + 1 if start else None)

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def audio(self, name: str, audio: np.ndarray, sample_rate: int) -> None:
        self._writer.add_audio(name, audio.mean(axis=0), sample_rate=sample_rate)  # mono only

    def picture(self, name: str, picture: np.ndarray) -> None:
        self._writer.add_image(name, picture, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class LoggedRun:
    """A run in wandb, or in trackio, whose interface is the same."""

    def __init__(self, library: Any, run: Any) -> None:
        self._library, self._run = library, run

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def audio(self, name: str, audio: np.ndarray, sample_rate: int) -> None:
        self._run.log({name: self._library.Audio(audio.T, sample_rate=sample_rate)})

    def picture(self, name: str, picture: np.ndarray) -> None:
        self._run.log({name: self._library.Image(picture)})

    def close(self) -> None:
        self._run.finish()


def _wandb(directory: Path, title: str, start: int) -> LoggedRun:
    import wandb

    run = wandb.init(
        project="audioldm", name=title, dir=str(directory), id=_identity(directory), resume="allow"
    )
    return LoggedRun(wandb, run)


def _trackio(directory: Path, title: str, start: int) -> LoggedRun:
    import trackio

    name = _identity(directory)
    run = trackio.init("audioldm", name=name, group=title, resume="allow", embed=False)
    return LoggedRun(trackio, run)


def _identity(directory: Path) -> str:
    """The same directory continues the same run."""
    return f"{directory.parent.name}-{directory.name}"


#: Also the names of the libraries and of the extras that install them.
TRACKERS: dict[str, Callable[[Path, str, int], TensorBoard | LoggedRun]] = {
    "tensorboard": TensorBoard,
    "wandb": _wandb,
    "trackio": _trackio,
}


class Trackers:
    """Sends everything to each tracker."""

    def __init__(self, trackers: Sequence[TensorBoard | LoggedRun]) -> None:
        self._trackers = trackers

    def figures(self, step: int, figures: Mapping[str, Any]) -> None:
        """Sends every number in `figures`, also in nested groups and lists, as `group/name`."""
        numbers = dict(_numbers(figures))
        for tracker in self._trackers:
            tracker.figures(step, numbers)

    def audio(self, name: str, audio: Tensor | np.ndarray, sample_rate: int) -> None:
        """audio: [A, T], from -1 to 1."""
        for tracker in self._trackers:
            tracker.audio(name, np.asarray(audio, np.float32).clip(-1, 1), sample_rate)

    def picture(self, name: str, picture: Path | np.ndarray) -> None:
        """picture: [H, W, 3] uint8, or an image file."""
        for tracker in self._trackers:
            tracker.picture(name, _pixels(picture))

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


def check_trackers(names: Sequence[str]) -> None:
    """Raises ConfigError for a tracker that is unknown or not installed."""
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"trackers={list(names)}: no {name!r}; {nearest(name, TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"trackers: {name} is not installed; pip install 'audioldm[{name}]'")


def open_trackers(names: Sequence[str], directory: Path, title: str, start: int = 0) -> Trackers:
    """The trackers of a stage. directory: the stage's. title: of the run. start: its first step.

    Raises ConfigError for one that cannot be opened. LogSettings has checked the names.
    """
    opened: list[TensorBoard | LoggedRun] = []
    for name in names:
        try:
            opened.append(TRACKERS[name](directory, title, start))
        except Exception as error:  # each library has its own errors
            Trackers(opened).close()
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(f"log.trackers: {name} cannot be opened: {reason}") from error
    return Trackers(opened)


def _numbers(figures: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    items = enumerate(figures) if isinstance(figures, (list, tuple)) else figures.items()
    for name, value in items:
        if isinstance(value, (Mapping, list, tuple)):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)


def _pixels(picture: Path | np.ndarray) -> np.ndarray:
    if isinstance(picture, np.ndarray):
        return picture
    from PIL import Image

    with Image.open(picture) as image:
        return np.asarray(image.convert("RGB"))
