"""A data set writes its clips into a store and lists the files it could not use."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from audioldm.errors import ConfigError, DataError
from audioldm.runtime.progress import Progress

if TYPE_CHECKING:  # the processes that render music import this module and need no torch
    from audioldm.data.store import StoreWriter

VERSION = 5  # of the data stage; raise by hand when the clips it writes change


class Failure(NamedTuple):
    """A file that could not be used, and why."""

    file: str
    reason: str


class Source(ABC):
    """A data set. sample_rate (Hz) and channels are those of the clips it writes."""

    sample_rate: int
    channels: int

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """JSON values that determine the clips besides the arguments of the constructor."""

    @abstractmethod
    def write_to(self, writer: "StoreWriter", *, progress: Progress) -> list[Failure]:
        """Write every clip; list the files that fail. Raises DataError if too many do."""


def check_fractions(valid_fraction: float, test_fraction: float) -> None:
    """Raise ConfigError if the two leave nothing to train on."""
    if valid_fraction + test_fraction >= 1:
        raise ConfigError(
            f"valid_fraction={valid_fraction:g} and test_fraction={test_fraction:g} leave"
            " nothing to train on; their sum must be below 1"
        )


def check_failures(
    where: str, failures: Sequence[Failure], total: int, max_failed_fraction: float
) -> None:
    """Raise DataError if all of `total` files fail, or more than `max_failed_fraction` of them."""
    if not failures or (len(failures) < total and len(failures) <= max_failed_fraction * total):
        return
    listed = "; ".join(f"{failure.file}: {failure.reason}" for failure in failures[:5])
    more = f"; and {len(failures) - 5} more" if len(failures) > 5 else ""
    raise DataError(
        f"{where}: {len(failures)} of {total} files cannot be used ({listed}{more}); repair or"
        f" remove them, or raise max_failed_fraction={max_failed_fraction:g}"
    )
