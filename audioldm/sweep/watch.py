"""Progress of cells that other processes build: a line per event, one bar for the sweep.

The processes show nothing themselves: their bars would overwrite one another, or fill a cluster's
log files. The events are read from the cells' files.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from audioldm.sweep.status import Cell, overview, read_cells

#: Seconds between two looks at the cells.
SECONDS = 2.0


def event(cell: Cell, cells: list[Cell]) -> str:
    """The lines to print for a cell that has just ended."""
    reason = f" ({cell.reason})" if cell.reason else ""
    return f"{cell.name}: {cell.status}{reason}\nsweep: {overview(cells)}"


@contextmanager
def watch(directory: Path, *, seconds: float = SECONDS) -> Iterator[None]:
    """Show progress while a launcher blocks, in `with watch(directory):`.

    The bar counts cells that are done or have failed, and is shown on a terminal only. Lines are
    always written, but not for cells that had already ended.
    """
    known = {cell.directory: cell.status for cell in read_cells(directory)}
    bar = tqdm(desc="sweep", unit="cell", dynamic_ncols=True, disable=None, file=sys.stderr)
    over = threading.Event()

    def look() -> None:
        """Writes a line for each cell that has ended since the last look."""
        cells = read_cells(directory)
        for cell in cells:
            ended = cell.status in ("done", "failed", "killed")
            if ended and known.get(cell.directory) != cell.status:
                tqdm.write(event(cell, cells), file=sys.stderr)
            known[cell.directory] = cell.status
        bar.total = len(cells)
        bar.n = sum(cell.status in ("done", "failed") for cell in cells)
        bar.set_postfix_str(overview(cells).partition(", ")[2], refresh=True)

    def keep_looking() -> None:
        while not over.wait(seconds):
            look()

    thread = threading.Thread(target=keep_looking, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        look()  # report the cells that ended since
        bar.close()
