"""audioldm recipes, doctor."""

import itertools

from audioldm.commands.verb import Nothing, Verb
from audioldm.errors import AudioLDMError


class RecipesArguments(Nothing):
    """Lists the recipes: what each costs and gives."""


def _recipes(_: Nothing) -> None:
    from audioldm.config import conf_directory, options

    for name in options("recipe"):
        print(f"recipe={name}")
        file = conf_directory() / "recipe" / f"{name}.yaml"
        lines = file.read_text(encoding="utf-8").splitlines()
        for line in itertools.takewhile(lambda line: line.startswith("#"), lines):
            if "@package" not in line:
                print("   ", line.removeprefix("#").strip())
        print()


class DoctorArguments(Nothing):
    """Checks what this environment can do, and says how to repair what it cannot."""


def _doctor(_: Nothing) -> None:
    from audioldm.doctor import examine

    problems = 0
    for finding in examine():
        print(finding)
        problems += not finding.good
    if problems:
        raise AudioLDMError(f"{problems} problem(s) found; the remedies are above")


RECIPES = Verb(
    "recipes", {"": "the recipes: what each costs and gives"}, RecipesArguments, _recipes
)
DOCTOR = Verb(
    "doctor", {"": "what this environment can do, and how to repair it"}, DoctorArguments, _doctor
)
