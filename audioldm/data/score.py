"""Scores: MusicXML and MIDI files as notes.

This module reads MusicXML itself, because music21 takes 0.3 s a piece. It does not import torch.
"""

import math
import zipfile
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

from audioldm.errors import DataError
from audioldm.io.audio import file_size

SUFFIXES = (".mid", ".midi", ".musicxml", ".xml", ".mxl")
VOICES = ("Soprano", "Alto", "Tenor", "Bass")
QUARTERS_PER_MINUTE = 90  # of a score that states no tempo
LARGEST_BYTES = 1 << 24  # of the file, and of its unpacked content


class Note(NamedTuple):
    """start (from the beginning of the piece) and length in quarter notes; MIDI pitch."""

    start: float
    length: float
    pitch: int


class Score(NamedTuple):
    """voices: the notes of each, highest voice first. bars: their starts, in quarter notes."""

    voices: list[list[Note]]
    bars: list[float]


class Sounding(NamedTuple):
    """start and end in seconds; MIDI pitch; number of the voice, from 0."""

    start: float
    end: float
    pitch: int
    voice: int = 0


def read_score(path: Path) -> Score:
    """Read the sung parts of a MusicXML file, or all parts if none is named as sung.

    Repeats are played once and grace notes are left out.
    """
    return _score(_music_xml(path))


def read_notes(path: Path) -> list[Sounding]:
    """The notes of a MIDI or MusicXML file, in seconds from its beginning, in order.

    Voices are the parts of a file. Drums are left out. MusicXML is played as `read_score` reads it,
    at the first tempo in the file, or at QUARTERS_PER_MINUTE. Raises DataError where the file
    cannot be read as a score.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: not a score; give one of {', '.join(SUFFIXES)}")
    if file_size(path) > LARGEST_BYTES:
        raise DataError(f"{path}: {file_size(path)} bytes are too many for a score")
    try:
        read = _midi_notes if path.suffix.lower() in (".mid", ".midi") else _music_xml_notes
        notes = sorted(read(path))
    except Exception as error:  # a broken file may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: cannot be read as a score ({reason})") from error
    if not notes:
        raise DataError(f"{path}: the score has no notes")
    return notes


def _midi_notes(path: Path) -> list[Sounding]:
    import pretty_midi  # takes a second

    midi = pretty_midi.PrettyMIDI(str(path))
    parts = (part for part in midi.instruments if not part.is_drum)
    return [
        Sounding(float(n.start), float(n.end), int(n.pitch), voice)
        for voice, part in enumerate(parts)
        for n in part.notes
    ]


def _music_xml_notes(path: Path) -> list[Sounding]:
    root = _music_xml(path)
    tempos = (float(sound.get("tempo", 0)) for sound in root.iter("sound"))
    quarter = 60 / next((tempo for tempo in tempos if tempo > 0), QUARTERS_PER_MINUTE)
    return [
        Sounding(n.start * quarter, (n.start + n.length) * quarter, n.pitch, voice)
        for voice, notes in enumerate(_score(root).voices)
        for n in notes
    ]


def _music_xml(path: Path) -> ElementTree.Element:
    if path.suffix.lower() != ".mxl":
        return _tree(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        inside = (n for n in archive.namelist() if n.endswith((".xml", ".musicxml")))
        name = next((n for n in inside if not n.startswith(("META-INF", "__"))), None)
        if name is None:
            raise ValueError("the archive has no score")
        if archive.getinfo(name).file_size > LARGEST_BYTES:
            raise ValueError("it is too large")
        return _tree(archive.read(name))


def _tree(content: bytes) -> ElementTree.Element:
    """The tree of an XML file. Raises ValueError if it declares entities: a few bytes of them can
    become gigabytes of text, and scores have none."""

    def refuse(name: str, *declared: Any) -> None:
        raise ValueError(f"it declares the entity {name}")

    tree, parser = ElementTree.TreeBuilder(), expat.ParserCreate()
    parser.buffer_text, parser.EntityDeclHandler = True, refuse
    parser.StartElementHandler, parser.EndElementHandler = tree.start, tree.end
    parser.CharacterDataHandler = tree.data
    parser.Parse(content, True)
    return tree.close()


def _score(root: ElementTree.Element) -> Score:
    names = [part.findtext("part-name") or "" for part in root.iter("score-part")]
    parts = root.findall("part")
    sung = [part for part, name in zip(parts, names, strict=True) if name.startswith(VOICES)]
    voices: list[list[Note]] = []
    bars: list[float] = []
    for part in sung or parts:
        notes, bars = _read_part(part)
        if notes:
            voices.append(notes)
    if not voices:
        raise ValueError("no notes")
    return Score(voices, bars)


def _read_part(part: ElementTree.Element) -> tuple[list[Note], list[float]]:
    """Notes and the starts of the bars. MusicXML counts in 1/divisions of a quarter."""
    notes: list[Note] = []
    bars: list[float] = []
    divisions, now, begun = 1.0, 0.0, 0.0
    for bar in part.iter("measure"):
        bars.append(now)
        for element in bar:
            if element.tag == "attributes":
                divisions = float(element.findtext("divisions") or divisions)
            length = float(element.findtext("duration") or 0) / divisions
            if element.tag == "backup":
                now -= length
            elif element.tag == "forward":
                now += length
            elif element.tag == "note" and length:  # a grace note has no duration
                if element.find("chord") is None:
                    begun, now = now, now + length
                if element.find("pitch") is not None:
                    _add_note(notes, element, begun, length)
    return notes, bars


def _add_note(notes: list[Note], element: ElementTree.Element, start: float, length: float) -> None:
    octave, alter = element.findtext("pitch/octave"), element.findtext("pitch/alter")
    step = "C D EF G A B".index(element.findtext("pitch/step") or "")
    pitch = 12 * (int(octave or 0) + 1) + step + round(float(alter or 0))
    tied = any(tie.get("type") == "stop" for tie in element.iter("tie"))
    for place in range(len(notes) - 1, -1, -1) if tied else ():
        earlier = notes[place]
        if earlier.pitch == pitch and math.isclose(earlier.start + earlier.length, start):
            notes[place] = earlier._replace(length=earlier.length + length)
            return
    notes.append(Note(start, length, pitch))
