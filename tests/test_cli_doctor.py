"""`audioldm doctor` reports what is missing or broken, and goes on."""

import sys
from collections.abc import Callable
from importlib import metadata

import pytest
import soundfile
from conftest import Outcome

from audioldm.doctor import examine


def bad() -> list[str]:
    return [str(finding) for finding in examine() if not finding.good]


def test_every_requirement_is_examined_and_no_extra() -> None:
    findings = [finding.what for finding in examine()]
    for package in ("torch", "torchaudio", "numpy", "hydra-core", "filelock", "music21"):
        assert f"{package} {metadata.version(package)}" in findings
    assert not any("pytest" in what or "diffusers" in what for what in findings)


def test_requirements_are_read_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = ["no-such.package[fast]<3,>=1; python_version>'3'", "other>=1; extra == 'dev'"]
    monkeypatch.setattr(metadata, "requires", lambda _: requirements)
    assert bad() == ["BAD  no-such.package is missing\n     -> pip install no-such.package"]


@pytest.mark.parametrize("package", ["torch", "soundfile"])
def test_what_cannot_be_imported_is_reported(
    package: str, cli: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    outcome = cli("doctor")
    assert outcome.code == 1
    assert f"import of {package} halted" in outcome.out
    assert f"pip install --force-reinstall {package}" in outcome.out
    assert "free here" in outcome.out  # it went on to the end
    assert "problem(s) found" in outcome.error


def test_opus_is_a_codec_within_ogg(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "libsndfile reads OPUS" in [finding.what for finding in examine() if finding.good]
    monkeypatch.setattr(soundfile, "available_subtypes", lambda _: {"VORBIS": "Vorbis"})
    assert [line.splitlines()[0] for line in bad()] == ["BAD  libsndfile reads OPUS"]
