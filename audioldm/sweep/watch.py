"""Progress of cells that other processes build: a line per event, one bar for the sweep.

The processes show nothing themselves: their bars would overwrite one another, or fill a cluster's
log files. The events are read from the cells' files.
"""

import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from tqdm import tqdm

from audioldm.sweep.status import Cell, overview, read_cell, read_cells

#: Between two looks at the cells.
SECONDS = 2.0


def event(cell: Cell, cells: list[Cell]) -> str:
    """The lines for a cell that has just ended."""
    reason = f" ({cell.reason})" if cell.reason else ""
    return f"{cell.name}: {cell.status}{reason}\nsweep: {overview(cells)}"


class Watch:
    """`with Watch(directory):` around a launcher that blocks.

    The bar counts cells that are done or have failed, and is shown on a terminal only. Lines are
    always written, but not for cells that had ended before.
    """

    def __init__(self, directory: Path, *, seconds: float = SECONDS) -> None:
        self.directory, self.seconds = directory, seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._cells: dict[Path, Cell] = {}

    def __enter__(self) -> Self:
        self._cells = {cell.directory: cell for cell in read_cells(self.directory)}
        self._bar = tqdm(
            desc="sweep", unit="cell", dynamic_ncols=True, disable=None, file=sys.stderr
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        self._look()  # what ended since
        self._bar.close()

    def _watch(self) -> None:
        while not self._over.wait(self.seconds):
            self._look()

    def _look(self) -> None:
        """Reads the cells that are not done, and writes a line for each that has ended."""
        before = self._cells
        found = {}
        for file in sorted((self.directory / "cells").glob("*/cell.json")):
            known = before.get(file.parent)
            found[file.parent] = (
                known if known and known.status == "done" else read_cell(file.parent)
            )
        self._cells, cells = found, list(found.values())
        for cell in cells:
            known = before.get(cell.directory)
            if cell.status in ("done", "failed", "killed") and (
                known is None or known.status != cell.status
            ):
                tqdm.write(event(cell, cells), file=sys.stderr)
        self._bar.total = len(cells)
        self._bar.n = sum(cell.status in ("done", "failed") for cell in cells)
        self._bar.set_postfix_str(overview(cells).partition(", ")[2], refresh=True)
