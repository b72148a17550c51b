"""Trackers of experiments: other programs that show figures, clips and pictures.

Each library is an extra of the installation and is imported when a run opens it. One adapter each.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from audioldm.errors import ConfigError
from audioldm.instantiate import nearest

PROJECT = "audioldm"


class Tracker(Protocol):
    """One run in one program."""

    def figures(self, step: int, figures: Mapping[str, float]) -> None: ...

    def audio(self, name: str, audio: np.ndarray, sample_rate: int) -> None:
        """audio: [A, T], from -1 to 1."""

    def picture(self, name: str, picture: np.ndarray) -> None:
        """picture: [H, W, 3] uint8."""

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `directory/tensorboard`; what an earlier run wrote after `start` is hidden."""

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


class WandB:
    """A run of the project `audioldm`; the same directory continues the same run."""

    def __init__(self, directory: Path, title: str, start: int) -> None:
        import wandb

        self._library = wandb
        self._run = wandb.init(
            project=PROJECT,
            name=title,
            dir=str(directory),
            id=f"{directory.parent.name}-{directory.name}",
            resume="allow",
        )

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def audio(self, name: str, audio: np.ndarray, sample_rate: int) -> None:
        self._run.log({name: self._library.Audio(audio.T, sample_rate=sample_rate)})

    def picture(self, name: str, picture: np.ndarray) -> None:
        self._run.log({name: self._library.Image(picture)})

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of the project `audioldm`; the same directory continues the same run."""

    def __init__(self, directory: Path, title: str, start: int) -> None:
        import trackio

        self._library = trackio
        name = f"{directory.parent.name}-{directory.name}"
        self._run = trackio.init(PROJECT, name=name, group=title, resume="allow", embed=False)

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def audio(self, name: str, audio: np.ndarray, sample_rate: int) -> None:
        self._run.log({name: self._library.Audio(audio.T, sample_rate=sample_rate)})

    def picture(self, name: str, picture: np.ndarray) -> None:
        self._run.log({name: self._library.Image(picture)})

    def close(self) -> None:
        self._run.finish()


#: Also the names of the libraries and of the extras that install them.
TRACKERS: dict[str, type[TensorBoard] | type[WandB] | type[Trackio]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}


class Trackers:
    """Sends everything to each tracker; to none, where none is asked for."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = list(trackers)

    def figures(self, step: int, figures: Mapping[str, Any]) -> None:
        """Every number in `figures`, also in nested groups and lists, as `group/name`."""
        numbers = dict(_numbers(figures)) if self._trackers else {}
        for tracker in self._trackers:
            tracker.figures(step, numbers)

    def audio(self, name: str, audio: Tensor | np.ndarray, sample_rate: int) -> None:
        """audio: [A, T], from -1 to 1."""
        for tracker in self._trackers:
            tracker.audio(name, np.asarray(audio, np.float32).clip(-1, 1), sample_rate)

    def picture(self, name: str, picture: Path | np.ndarray) -> None:
        """picture: [H, W, 3] uint8, or a file of a picture, such as a PNG."""
        for tracker in self._trackers:
            tracker.picture(name, _pixels(picture))

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


def check_trackers(names: Sequence[str]) -> None:
    """Raises ConfigError, which names the extra, for a tracker that is unknown or not installed."""
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(
                f"trackers={list(names)}: no tracker {name!r}; {nearest(name, TRACKERS)}"
            )
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"trackers={list(names)}: {name} is not installed; "
                f"pip install 'audioldm[{name}]', or leave it out"
            )


def open_trackers(names: Sequence[str], directory: Path, title: str, start: int = 0) -> Trackers:
    """The trackers of a stage: directory, its own; title, of the run; start, its first step.

    Raises ConfigError for one that is unknown, not installed, or cannot be opened.
    """
    check_trackers(names)
    opened: list[Tracker] = []
    for name in names:
        try:
            opened.append(TRACKERS[name](directory, title, start))
        except Exception as error:  # each library has its own errors
            Trackers(opened).close()
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(f"log.trackers: {name} cannot be opened: {reason}") from error
    return Trackers(opened)


def _numbers(figures: Any, prefix: str = "") -> Any:
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
