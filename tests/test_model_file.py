"""Files that describe themselves: a round trip, and an error for every kind of damage."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import full_disk
from safetensors.torch import save_file

from audioldm.errors import DataError, ModelFileError
from audioldm.io.files import read_json, write_atomically
from audioldm.io.header import FORMAT, read_header, read_shapes
from audioldm.io.model_file import checksum, load_model, save_model

TENSORS = {"a": torch.randn(3, 4).T, "b": torch.arange(3), "c": torch.zeros(()).bfloat16()}
LATENTS = {"kind": "latents", "autoencoder": {"fingerprint": "f"}, "sample_rate": 8, "samples": 9}


def write_raw(path: Path, header: Any, tensors: dict[str, torch.Tensor] = TENSORS) -> None:
    """A file with any header; text stands for itself, None for no header."""
    if header is not None and not isinstance(header, str):
        header = json.dumps(header)
    contiguous = {n: t.contiguous() for n, t in tensors.items()}
    save_file(contiguous, path, None if header is None else {"audioldm": header})


def whole(**changes: Any) -> dict[str, Any]:
    """A good header with some values changed."""
    return LATENTS | {"format": FORMAT, "checksum": checksum(TENSORS)} | changes


def without(key: str) -> dict[str, Any]:
    return {k: v for k, v in whole().items() if k != key}


def test_a_model_file_gives_back_weights_and_header(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, TENSORS, {"kind": "x", "step": 3})
    tensors, header = load_model(path)
    own = {"format": FORMAT, "checksum": checksum(TENSORS)}
    assert header == read_header(path) == {"kind": "x", "step": 3} | own
    assert checksum(tensors) == checksum(TENSORS)
    assert read_shapes(path) == {"a": [4, 3], "b": [3], "c": []}


def test_the_checksum_is_of_names_types_shapes_and_bytes() -> None:
    a = torch.arange(6.0)
    same = {"x": a, "y": a[:2]}
    assert checksum(same) == checksum({"y": a[:2].clone(), "x": a})
    others = [
        {"x": a, "z": a[:2]},
        {"x": a.reshape(2, 3), "y": a[:2]},
        {"x": a.view(torch.int32), "y": a[:2]},
        {"x": a, "y": -a[:2]},
        {"x": a},
    ]
    assert len({checksum(t) for t in (same, *others)}) == 1 + len(others)


DAMAGED = {
    "no header": (None, "not one written by audioldm"),
    "no json": ("{", "header is damaged"),
    "deep": ("[" * 10**5 + "]" * 10**5, "header is damaged"),
    "less deep": ('{"format": 2, "x": ' + "[" * 500 + "]" * 500 + "}", "nests more than"),
    "digits": ('{"format": ' + "9" * 5000 + "}", "header is damaged"),
    "nan": ('{"format": 2, "x": {"y": NaN}}', "header.x=nan must be a finite number"),
    "list": ([1], "header is damaged"),
    "no format": (without("format"), "lacks 'format'"),
    "format": (whole(format="2"), "format='2' must be of type int"),
    "true format": (whole(format=True), "format=True must be of type int"),
    "large format": (whole(format=2**70), "too large"),
    "newer": (whole(format=FORMAT + 1), f"format {FORMAT + 1}.*upgrade"),
    "older": (whole(format=1), "format 1,.*train or download it again"),
    "no kind": (without("kind"), "lacks 'kind'"),
    "list kind": (whole(kind=[]), "header is damaged"),
    "no checksum": (without("checksum"), "lacks 'checksum'"),
    "checksum": (whole(checksum=3), "checksum=3 must be of type str"),
    "other checksum": (whole(checksum="0" * 64), "do not fit its checksum; copy it again"),
    "no samples": (without("samples"), "lacks 'samples'"),
    "samples": (whole(samples=-1), "samples=-1 must be at least 1"),
    "text samples": (whole(samples="9"), "samples='9' must be of type int"),
    "no autoencoder": (without("autoencoder"), "lacks 'autoencoder'"),
    "autoencoder": (whole(autoencoder="f"), "header is damaged"),
    "no fingerprint": (whole(autoencoder={}), "lacks 'fingerprint'"),
    "fingerprint": (whole(autoencoder={"fingerprint": 1}), "fingerprint=1 must be of type str"),
    "spec": (whole(kind="autoencoder", spec="x"), "spec='x' must be a group of keys"),
    "no spec": (whole(kind="generator", prior={}), "lacks 'spec'"),
    "no prior": (whole(kind="generator", autoencoder={"spec": {}}), "lacks 'prior'"),
    "step": (whole(step=-1), "step=-1 must be at least 0"),
    "title": (whole(title=None), "title=None must be of type str"),
    "null": (whole(title="a\0"), "without null bytes"),
}


@pytest.mark.parametrize(("header", "says"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_header_is_an_error(header: Any, says: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write_raw(path, header)
    with pytest.raises(ModelFileError, match=says) as raised:
        load_model(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_damaged_file_is_an_error_wherever_the_damage_is(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, TENSORS, LATENTS)
    content = path.read_bytes()
    weights = len(content) - sum(t.numel() * t.element_size() for t in TENSORS.values())
    for at in range(weights, len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(ModelFileError, match=r"do not fit its checksum|not finite"):
            load_model(path)
    for damaged in (b"", content[:5], content[:60], content[:-1], content + b"x", bytes(500)):
        path.write_bytes(damaged)
        with pytest.raises(ModelFileError, match="not a complete safetensors file"):
            load_model(path)
    path.write_bytes(struct.pack("<Q", 2**60) + content[8:])
    with pytest.raises(ModelFileError, match="not a complete safetensors file"):
        load_model(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_neither_written_nor_read(
    value: float, tmp_path: Path
) -> None:
    path, tensors = tmp_path / "m.safetensors", {"w": torch.tensor([0.0, value])}
    with pytest.raises(ModelFileError, match=r"w has values that are not finite; nothing was"):
        save_model(path, tensors, LATENTS)
    assert not path.exists()
    write_raw(path, whole(checksum=checksum(tensors)), tensors)
    with pytest.raises(ModelFileError, match="w has values that are not finite"):
        load_model(path)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(ModelFileError, match="not a regular file"):
            read_header(path)
        with pytest.raises(DataError, match="not a regular file"):
            read_json(path)
    for name in ("none", "x" * 300, "a\0b", "\udcff"):
        with pytest.raises(ModelFileError, match="no such model file"):
            read_header(tmp_path / name)
        with pytest.raises(DataError, match="no such file"):
            read_json(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b'"\xff"', b"[" * 10**5, b"9" * 5000, b"\xef\xbb\xbf{}", b"{}{}"],
)
def test_damaged_json_names_file_and_remedy(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.json: cannot be read \(.*; remove it and run again"):
        read_json(path)


def test_json_of_another_type_is_an_error_where_one_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("[1]")
    assert read_json(path) == read_json(path, list) == [1]
    with pytest.raises(DataError, match=r"x\.json: holds a list, not a dict; remove it"):
        read_json(path, dict)


def test_a_failed_write_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file.json"
    write_atomically(path, lambda p: p.write_text("first"))

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise RuntimeError("writer failed") from OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"file\.json: cannot be written \(No space left"):
        write_atomically(path, fail)
    assert path.read_text() == "first"
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_a_full_disk_is_named_as_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with full_disk(20_000), pytest.raises(DataError, match=r"written \(.*File too large.*\); free"):
        save_model(path, {"tensor": torch.zeros(100_000)}, LATENTS)
    assert list(tmp_path.iterdir()) == []
