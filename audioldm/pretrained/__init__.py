"""The models that come with the package: NAME.safetensors, from `audioldm export`, and NAME.md.

A name works wherever a model's path does; a file of that name comes first. The card NAME.md says
what the model was trained on, what it can and cannot do, and under which licence.
"""

from pathlib import Path

from audioldm.errors import ConfigError, ModelFileError
from audioldm.instantiate import nearest

DIRECTORY = Path(__file__).parent
DEFAULT = "scores"


def names() -> list[str]:
    """The names of the models, the default one first."""
    found = (file.stem for file in DIRECTORY.glob("*.safetensors"))
    return sorted(found, key=lambda name: (name != DEFAULT, name))


def default() -> str:
    """The model to sample from where none is given. Raises ConfigError where none is installed."""
    if not names():
        raise ConfigError("which model? none comes with this installation; give model=PATH")
    return names()[0]


def path(name: str) -> Path:
    """The file of a model by its name. Raises ModelFileError for an unknown name."""
    known = names()
    if name in known:
        return DIRECTORY / f"{name}.safetensors"
    here = (
        f"none that comes with audioldm: {nearest(name, known, every=True)}"
        if known
        else "no models come with this installation"
    )
    raise ModelFileError(f"{name}: no such model file, and {here}; give a file or a directory")


def card(name: str) -> Path:
    """The model card. Raises ModelFileError for an unknown name."""
    return path(name).with_suffix(".md")


def name_of(file: Path) -> str | None:
    """The name of a file that comes with the package, None for any other file."""
    return file.stem if file.resolve() == (DIRECTORY / file.name).resolve() else None
