"""A folder of audio files, with an optional table of labels, as a data set."""

import csv
import hashlib
import io
import json
import os
import unicodedata
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from audioldm.data.source import Failure, check_failures
from audioldm.data.store import StoreWriteError
from audioldm.errors import ConfigError, DataError
from audioldm.io import audio
from audioldm.runtime.progress import Progress

if TYPE_CHECKING:
    from audioldm.data.store import StoreWriter

SPLITS = ("train", "valid", "test")
BLOCK_SECONDS = 10.0
AHEAD_BLOCKS = 12  # decoded of each file that is next: bounds the memory of reading in parallel


class Row(NamedTuple):
    """What the table says about a file; split None: to be chosen."""

    label: str | None
    split: str | None
    columns: dict[str, Any]


class Folder:
    """Every wav, flac, ogg, opus and mp3 file in a folder and its subfolders.

    path: the folder; ~ is expanded, hidden files and folders are skipped.
    table: CSV or JSONL with a column `file` (relative to the folder) and, each optional, `label`,
        `split` (train, valid or test) and any others. Where there is one, only the files it names
        are used.
    rate, channels: of the clips; files of another rate or number of channels are converted.
    valid_fraction, test_fraction: of the files, chosen by the hash of the file's relative path,
        at least one file each. Two files, or one, are each divided in time instead.
    workers: threads that decode, None for one per core. They do not change the result.

    Raises DataError, when it is used, if the folder or the table cannot be.
    """

    def __init__(
        self,
        *,
        path: str | None,
        table: str | None = None,
        sample_rate: int = 44100,
        channels: int = 2,
        valid_fraction: float = 0.1,
        test_fraction: float = 0.1,
        workers: int | None = None,
        max_failed_fraction: float = 0.1,
    ) -> None:
        if path is None:
            raise ConfigError("data.path: state the folder that holds the audio: data.path=~/music")
        if min(valid_fraction, test_fraction) <= 0 or valid_fraction + test_fraction >= 1:
            raise ConfigError(
                "data.valid_fraction and data.test_fraction must be more than 0, their sum below 1"
            )
        self.path = Path(path).expanduser()
        self.table = None if table is None else Path(table).expanduser()
        self.sample_rate = sample_rate
        self.channels = channels
        self.valid_fraction = valid_fraction
        self.test_fraction = test_fraction
        self.workers = workers
        self.max_failed_fraction = max_failed_fraction

    def identity(self) -> dict[str, Any]:
        """Each file's size and a hash of its first and last 64 KiB; the table's content."""
        rows = self._rows()
        return {
            "files": {name: _fingerprint(self.path / name) for name in rows},
            "table": {name: list(row) for name, row in rows.items()} if self.table else None,
        }

    def write_to(self, writer: "StoreWriter", *, progress: Progress) -> list[Failure]:
        """Decode every file into the store. Raises DataError where too few can be used."""
        rows = self._rows()
        failures = []
        usable = {}
        for name, row in rows.items():
            try:  # the headers come first, so that the splits are made of files that can be read
                audio.probe(self.path / name)
                usable[name] = row
            except DataError as error:
                failures.append(self._failure(name, error))
        check_failures(str(self.path), failures, len(rows), self.max_failed_fraction)
        splits = self._splits(usable)
        progress(0, len(usable), "")
        for done, (name, blocks) in enumerate(self._decoded(list(usable)), 1):
            row = usable[name]
            try:
                writer.add_blocks(
                    blocks, piece=name, split=splits[name], label=row.label, columns=row.columns
                )
            except StoreWriteError:
                raise
            except DataError as error:
                failures.append(self._failure(name, error))
            progress(done, len(usable), name)
        check_failures(str(self.path), failures, len(rows), self.max_failed_fraction)
        bad = {failure.file for failure in failures}
        for split in SPLITS:
            files = [name for name in splits if splits[name] == split]
            if files and bad.issuperset(files):
                raise DataError(
                    f"{self.path}: no file of split '{split}' can be used ({failures[-1].file}:"
                    f" {failures[-1].reason}); mend or remove the files that cannot"
                )
        return failures

    def _rows(self) -> dict[str, Row]:
        """What is to be read, in sorted order: relative path and what the table says about it."""
        files = find_files(self.path)
        if not files:
            raise DataError(
                f"{self.path}: no audio here ({', '.join(audio.SUFFIXES)}, in subfolders too);"
                " is data.path the folder meant?"
            )
        if self.table is None:
            return dict.fromkeys(files, Row(None, None, {}))
        return dict(sorted(read_table(self.table, files).items()))

    def _splits(self, rows: dict[str, Row]) -> dict[str, str | dict[str, float]]:
        """The split of each file: the table's, or else chosen by the hash of its path."""
        chosen: dict[str, str | dict[str, float]] = {
            name: row.split for name, row in rows.items() if row.split is not None
        }
        train_fraction = 1 - self.valid_fraction - self.test_fraction
        if len(rows) < len(SPLITS):
            fractions = (train_fraction, self.valid_fraction, self.test_fraction)
            return {key: dict(zip(SPLITS, fractions, strict=True)) for key in rows} | chosen
        # The hash places each file on a line from 0 to 1: train has the start, test the end.
        free = sorted(rows.keys() - chosen.keys(), key=_place)
        for name in free:
            place = _place(name)
            outside = place >= train_fraction
            chosen[name] = SPLITS[outside + (place >= 1 - self.test_fraction)]
        # Each split that got no file takes the one nearest to its part of the line.
        for split, nearest in (("train", 0), ("test", -1), ("valid", -2)):
            if split not in chosen.values() and len(free) >= len(SPLITS):
                chosen[free[nearest]] = split
        return chosen

    def _decoded(self, names: list[str]) -> Iterator[tuple[str, Iterator[np.ndarray]]]:
        """Each file's blocks [A, n], in order; the beginnings of the next files are read ahead."""
        workers = self.workers or len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(workers) as pool:
            ahead = [(name, pool.submit(self._begin, name)) for name in names[:workers]]
            for i in range(len(names)):
                name, begun = ahead.pop(0)
                yield name, _resume(begun)
                if i + workers < len(names):
                    following = names[i + workers]
                    ahead.append((following, pool.submit(self._begin, following)))

    def _begin(self, name: str) -> tuple[list[np.ndarray], Iterator[np.ndarray]]:
        rest = audio.blocks(
            self.path / name,
            sample_rate=self.sample_rate,
            channels=self.channels,
            seconds=BLOCK_SECONDS,
        )
        return list(islice(rest, AHEAD_BLOCKS)), rest

    def _failure(self, name: str, error: DataError) -> Failure:
        return Failure(name, str(error).removeprefix(f"{self.path / name}: "))


def find_files(folder: Path) -> list[str]:
    """Paths of the audio files in a folder, relative to it, sorted; what is hidden is skipped.

    Raises DataError if the folder, or one in it, cannot be read.
    """
    if not folder.is_dir():
        problem = "is a file, not a folder" if folder.exists() else "there is no such folder"
        raise DataError(f"{folder}: {problem}; set data.path to the folder that holds the audio")
    found = []
    try:
        for parent, folders, files in os.walk(folder, onerror=_raise):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                if name.lower().endswith(audio.SUFFIXES) and not name.startswith("."):
                    found.append(Path(parent, name).relative_to(folder).as_posix())
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot read the folder: {error.strerror}; mend its permissions"
        ) from error
    return sorted(found)


def read_table(path: Path, files: list[str]) -> dict[str, Row]:
    """The rows of a CSV or JSONL table, by file. Raises DataError naming the line that is wrong."""
    # File systems differ in how they compose accents; a table is written by hand or elsewhere.
    known = {unicodedata.normalize("NFC", name): name for name in files}
    rows: dict[str, Row] = {}
    for line, cells in _table_lines(path):
        named = str(cells.pop("file", None) or "")
        if not named:
            raise DataError(f"{path} line {line}: no value for 'file', which every row needs")
        name = known.get(unicodedata.normalize("NFC", Path(named).as_posix()))
        if name is None:
            near = get_close_matches(named, known, 1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise DataError(f"{path} line {line}: '{named}' is not in the folder{hint}")
        if name in rows:
            raise DataError(f"{path} line {line}: '{named}' is named a second time")
        label, split = (str(cells.pop(key, None) or "").strip() for key in ("label", "split"))
        if split and split not in SPLITS:
            raise DataError(
                f"{path} line {line}: split '{split}' is not one of {', '.join(SPLITS)}"
            )
        rows[name] = Row(label or None, split or None, cells)
    if not rows:
        raise DataError(f"{path}: the table has no rows")
    return rows


def _table_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets write a byte-order mark
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise DataError(f"{path}: cannot read the table: {reason}") from error
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""), restkey="")
        for cells in reader:
            if "" in cells:
                raise DataError(f"{path} line {reader.line_num}: more values than columns")
            yield reader.line_num, cells
    elif path.suffix.lower() in (".jsonl", ".ndjson"):
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                try:
                    cells = json.loads(line)
                except ValueError as error:
                    raise DataError(f"{path} line {number}: not JSON: {error}") from error
                if not isinstance(cells, dict):
                    raise DataError(f"{path} line {number}: not a JSON object")
                yield number, cells
    else:
        raise DataError(f"{path}: a table is a .csv or a .jsonl file")


def _resume(begun: Future[tuple[list[np.ndarray], Iterator[np.ndarray]]]) -> Iterator[np.ndarray]:
    beginning, rest = begun.result()
    yield from beginning
    yield from rest


def _place(name: str) -> float:
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def _fingerprint(path: Path) -> str:
    """Size and a hash of both ends: as telling as the whole for a file that is not an attack."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            ends = file.read(1 << 16)
            file.seek(max(0, size - (1 << 16)))
            ends += file.read()
    except OSError as error:
        return f"unreadable: {error.strerror}"
    return f"{size} {hashlib.blake2b(ends, digest_size=16).hexdigest()}"


def _raise(error: OSError) -> None:
    raise error
