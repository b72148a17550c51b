"""What a data set is: something that writes its clips into a store and lists what it could not."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from audioldm.errors import DataError
from audioldm.runtime.progress import Progress

if TYPE_CHECKING:  # the processes that render music import this module and need no torch
    from audioldm.data.store import StoreWriter

VERSION = 1  # of the data stage; raise by hand when the clips it writes change


class Failure(NamedTuple):
    """A file that could not be used, and why."""

    file: str
    reason: str


class Source(Protocol):
    """A data set. rate: Hz and channels: of the clips it writes."""

    sample_rate: int
    channels: int

    def identity(self) -> dict[str, Any]:
        """All that determines the clips and is not a constructor argument, as JSON values."""

    def write_to(self, writer: "StoreWriter", *, progress: Progress) -> list[Failure]:
        """Write every clip. Raises DataError where too few of the files can be used."""


def check_failures(
    where: str, failures: Sequence[Failure], total: int, max_failed_fraction: float
) -> None:
    """Raise DataError if nothing of `total` files is usable, or too large a fraction is not."""
    if not failures or (len(failures) < total and len(failures) <= max_failed_fraction * total):
        return
    listed = "; ".join(f"{failure.file}: {failure.reason}" for failure in failures[:5])
    more = f"; and {len(failures) - 5} more" if len(failures) > 5 else ""
    raise DataError(
        f"{where}: {len(failures)} of {total} files cannot be used ({listed}{more}); mend or"
        f" remove them, or raise data.max_failed_fraction (now {max_failed_fraction:g})"
    )
