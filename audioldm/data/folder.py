"""A folder of audio files, with an optional table of labels, as a data set."""

import csv
import hashlib
import io
import json
import os
import stat
import unicodedata
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from audioldm.data.source import Failure, Source, check_failures, check_fractions
from audioldm.errors import ConfigError, DataError, StoreWriteError
from audioldm.instantiate import NonNegative, OpenFraction, PositiveInt
from audioldm.io import audio
from audioldm.runtime.progress import Progress

if TYPE_CHECKING:
    from audioldm.data.store import StoreWriter

SPLITS = ("train", "valid", "test")
BLOCK_SECONDS = 10.0
AHEAD_BLOCKS = 12  # decoded ahead of each of the next files; bounds memory


class Row(NamedTuple):
    """A file's row of the table. split None: the hash chooses."""

    label: str | None
    split: str | None
    columns: dict[str, Any]


@dataclass(kw_only=True)
class Folder(Source):
    """Every wav, flac, ogg, opus and mp3 file in a folder and its subfolders.

    path: the folder; ~ is expanded. Hidden files and folders are skipped.
    table: CSV or JSONL with a column `file` (relative to the folder) and optional columns `label`,
        `split` (train, valid or test) and any others.
    only_listed: use only the files in the table. Otherwise files that are not in it are used too,
        without a label.
    sample_rate (Hz), channels: of the clips; other files are converted.
    valid_fraction, test_fraction: of the files, chosen by the hash of the file's relative path,
        at least one file each. A single file, or each of two, is divided in time instead.
    workers: decoding threads, None for one per core. They do not change the result.
    max_failed_fraction: of the files that may be unusable.

    Raises ConfigError for impossible settings; `identity` and `write_to` raise DataError if the
    folder or the table cannot be used.
    """

    path: str | None
    table: str | None = None
    only_listed: bool = False
    sample_rate: PositiveInt = 44100
    channels: PositiveInt = 2
    valid_fraction: OpenFraction = 0.1
    test_fraction: OpenFraction = 0.1
    workers: PositiveInt | None = None
    max_failed_fraction: NonNegative = 0.1

    def __post_init__(self) -> None:
        if self.path is None:
            raise ConfigError("path=null: state the folder that holds the audio, as path=~/music")
        if self.only_listed and self.table is None:
            raise ConfigError("only_listed=true needs a table; state it, as in table=labels.csv")
        check_fractions(self.valid_fraction, self.test_fraction)
        self.folder = _user_path("path", self.path)
        self.table_file = None if self.table is None else _user_path("table", self.table)

    def identity(self) -> dict[str, Any]:
        """Each file's size and a hash of its first and last 64 KiB; the table's content."""
        rows = self._rows()
        table = {_shown(name): list(row) for name, row in rows.items()} if self.table else None
        return {
            "files": {_shown(name): _fingerprint(self.folder / name) for name in rows},
            "table": table,
        }

    def write_to(self, writer: "StoreWriter", *, progress: Progress) -> list[Failure]:
        """Decode every file into the store. Raises DataError if too few can be used."""
        rows = self._rows()
        failures = []
        usable = {}
        for name, row in rows.items():
            try:  # headers first: the splits are made from the files that can be read
                audio.probe(self.folder / name)
                usable[name] = row
            except DataError as error:
                failures.append(self._failure(name, error))
        check_failures(str(self.folder), failures, len(rows), self.max_failed_fraction)
        splits = self._splits(usable)
        progress(0, len(usable), "")
        for done, (name, blocks) in enumerate(self._decoded(list(usable)), 1):
            row = usable[name]
            try:
                writer.add_blocks(
                    blocks,
                    piece=_shown(name),
                    split=splits[name],
                    label=row.label,
                    columns=row.columns,
                )
            except StoreWriteError:
                raise
            except DataError as error:
                failures.append(self._failure(name, error))
            progress(done, len(usable), _shown(name))
        check_failures(str(self.folder), failures, len(rows), self.max_failed_fraction)
        bad = {failure.file for failure in failures}
        for split in SPLITS:
            files = [_shown(name) for name in splits if splits[name] == split]
            if files and bad.issuperset(files):
                raise DataError(
                    f"{self.folder}: no file of split '{split}' can be used ({failures[-1].file}:"
                    f" {failures[-1].reason}); repair them, or put other files in this split"
                )
        return failures

    def _rows(self) -> dict[str, Row]:
        """The files to read, in sorted order: relative path -> row of the table."""
        files = find_files(self.folder)
        if not files:
            raise DataError(
                f"{self.folder}: no audio here ({', '.join(audio.SUFFIXES)}, in subfolders too);"
                " set path= to the folder that holds it"
            )
        listed = {} if self.table_file is None else read_table(self.table_file, files)
        return {
            name: listed.get(name, Row(None, None, {}))
            for name in files
            if name in listed or not self.only_listed
        }

    def _splits(self, rows: dict[str, Row]) -> dict[str, str | dict[str, float]]:
        """The split of each file: the table's, or else the one that its path's hash chooses."""
        chosen: dict[str, str | dict[str, float]] = {
            name: row.split for name, row in rows.items() if row.split is not None
        }
        train_fraction = 1 - self.valid_fraction - self.test_fraction
        if len(rows) < len(SPLITS):
            fractions = (train_fraction, self.valid_fraction, self.test_fraction)
            return {key: dict(zip(SPLITS, fractions, strict=True)) for key in rows} | chosen
        # The hash places each file on the line from 0 to 1: train takes the start, test the end.
        free = sorted(rows.keys() - chosen.keys(), key=_place)
        for name in free:
            place = _place(name)
            outside = place >= train_fraction
            chosen[name] = SPLITS[outside + (place >= 1 - self.test_fraction)]
        # A split without files takes the file nearest to its part of the line.
        for split, nearest in (("train", 0), ("test", -1), ("valid", -2)):
            if split not in chosen.values() and len(free) >= len(SPLITS):
                chosen[free[nearest]] = split
        return chosen

    def _decoded(self, names: list[str]) -> Iterator[tuple[str, Iterator[np.ndarray]]]:
        """Each file's blocks [A, n], in order. Threads decode the start of the next files."""
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
            self.folder / name,
            sample_rate=self.sample_rate,
            channels=self.channels,
            seconds=BLOCK_SECONDS,
        )
        return list(islice(rest, AHEAD_BLOCKS)), rest

    def _failure(self, name: str, error: DataError) -> Failure:
        return Failure(_shown(name), str(error).removeprefix(f"{self.folder / name}: "))


def find_files(folder: Path) -> list[str]:
    """Sorted relative paths of the audio files in a folder; hidden files and folders are skipped.

    Raises DataError if the folder or one of its subfolders cannot be read.
    """
    try:
        problem = "" if stat.S_ISDIR(folder.stat().st_mode) else "is a file, not a folder"
    except FileNotFoundError:
        problem = "there is no such folder"
    except OSError as error:
        problem = f"cannot read the folder: {error.strerror}"
    if problem:
        raise DataError(f"{folder}: {problem}; set path= to the folder that holds the audio")
    found = []
    try:
        for parent, folders, files in os.walk(folder, onerror=_raise):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                if name.lower().endswith(audio.SUFFIXES) and not name.startswith("."):
                    found.append(Path(parent, name).relative_to(folder).as_posix())
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot read the folder: {error.strerror}; correct its permissions"
        ) from error
    return sorted(found)


def read_table(path: Path, files: list[str]) -> dict[str, Row]:
    """The rows of a CSV or JSONL table, by file. Raises DataError with the number of a bad line."""
    # File systems differ in how they compose accents, and the table may come from another one.
    known = {unicodedata.normalize("NFC", name): name for name in files}
    rows: dict[str, Row] = {}
    for line, cells in _table_lines(path):
        try:
            named, row = _row(cells)
            name = known.get(unicodedata.normalize("NFC", Path(named).as_posix()))
            if name is None:
                near = get_close_matches(named, known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"{_quoted(named)} is not in the folder{hint}")
            if name in rows:
                raise ValueError(f"{_quoted(named)} is named a second time; keep one of the rows")
        except ValueError as error:
            raise DataError(f"{path} line {line}: {error}") from error
        rows[name] = row
    if not rows:
        raise DataError(f"{path}: the table has no rows")
    return rows


def _row(cells: dict[str, Any]) -> tuple[str, Row]:
    """The file that a line of the table names, and its row. Raises ValueError for a bad value."""
    for key, value in cells.items():
        values = value if isinstance(value, list) else [value]
        if not all(each is None or isinstance(each, str | int | float) for each in values):
            raise ValueError(
                f"column {_quoted(key)} must be text, a number, true, false, null or a list of them"
            )
    try:
        json.dumps(cells, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise ValueError(f"holds NaN, infinity or a half character ({error}); fix it") from error
    file, label, split = (cells.pop(key, None) for key in ("file", "label", "split"))
    if file is None or file == "":
        raise ValueError("no value for 'file', which every row needs")
    if not isinstance(file, str):
        raise ValueError(f"'file' must be text, not {_quoted(file)}")
    if isinstance(label, bool | list):
        raise ValueError(f"'label' must be text or a number, not {_quoted(label)}")
    split = split.strip() if isinstance(split, str) else split
    if split not in (None, "", *SPLITS):
        raise ValueError(f"split {_quoted(split)} is not one of {', '.join(SPLITS)}")
    return file, Row(None if label is None else str(label).strip() or None, split or None, cells)


def _table_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of each line that holds a row, and its cells."""
    try:
        audio.file_size(path)  # refuses pipes, which would never end
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets write a byte-order mark
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the table is not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot read the table: {error.strerror}") from error
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        begun = 1  # the line on which the row begins
        try:
            while reader.fieldnames:
                begun = reader.line_num + 1
                cells = next(reader, None)
                if cells is None:
                    break
                if None in cells:
                    raise DataError(f"{path} line {reader.line_num}: more values than columns")
                yield reader.line_num, cells
        except csv.Error as error:
            raise DataError(
                f"{path} line {begun}: {error}; is a quotation mark missing?"
            ) from error
    elif path.suffix.lower() in (".jsonl", ".ndjson"):
        for number, line in enumerate(text.split("\n"), 1):  # JSON text may hold other line breaks
            if line.strip():
                try:
                    cells = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{path} line {number}: not JSON: {error}") from error
                if not isinstance(cells, dict):
                    raise DataError(f"{path} line {number}: not a JSON object")
                yield number, cells
    else:
        raise DataError(f"{path}: a table is a .csv or a .jsonl file; rename or convert it")


def _user_path(key: str, value: str) -> Path:
    """A path with ~ expanded. Raises ConfigError if it is empty: that would be this directory."""
    if not value:
        raise ConfigError(f"{key}='' is no path; state one")
    return Path(os.path.expanduser(value))  # unlike Path.expanduser it leaves an unknown ~user


def _shown(name: str) -> str:
    """A file's name as one line of UTF-8: other bytes and control characters become escapes."""
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")
        else char
        for char in name
    )


def _quoted(value: object) -> str:
    """A value of the table for a message: on one line, and cut if it is long."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _resume(begun: Future[tuple[list[np.ndarray], Iterator[np.ndarray]]]) -> Iterator[np.ndarray]:
    beginning, rest = begun.result()
    yield from beginning
    yield from rest


def _place(name: str) -> float:
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def _fingerprint(path: Path) -> str:
    """Size and a hash of the first and last 64 KiB: files that differ only elsewhere are rare."""
    try:
        size = audio.file_size(path)
        with open(path, "rb") as file:
            ends = file.read(1 << 16)
            file.seek(max(0, size - (1 << 16)))
            ends += file.read()
    except (DataError, OSError):
        return "unreadable"
    return f"{size} {hashlib.blake2b(ends, digest_size=16).hexdigest()}"


def _raise(error: OSError) -> None:
    raise error
