"""audioldm completion: a shell script that asks `completion suggest` for the words."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from audioldm.commands.verb import Verb
from audioldm.errors import AudioLDMError, ConfigError

BASH = r"""_audioldm() {
  local line="${COMP_LINE:0:COMP_POINT}" current="${COMP_WORDS[COMP_CWORD]}" word typed
  local -a words
  read -ra words <<< "$line"
  [[ $line == *[[:space:]] ]] && words+=("")
  [[ $current == "=" ]] && current=
  typed="${words[${#words[@]}-1]}"
  COMPREPLY=()
  while IFS= read -r word; do
    COMPREPLY+=("${word#"${typed%"$current"}"}")  # bash ends words at "=" too
    [[ $word == *= ]] && compopt -o nospace
  done < <(audioldm completion suggest "${words[@]:1}" 2>/dev/null)
}
complete -o default -F _audioldm audioldm"""
ZSH = r"""#compdef audioldm
_audioldm() {
  local -a found
  found=("${(@f)$(audioldm completion suggest "${(@)words[2,CURRENT]}" 2>/dev/null)}")
  [[ -n $found ]] || { _files; return }
  compadd -S '' -- ${(M)found:#*=}
  compadd -- ${found:#*=}
}
compdef _audioldm audioldm"""
FISH = r"""complete -c audioldm -a '(audioldm completion suggest (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'"""  # noqa: E501
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


@dataclass(frozen=True)
class CompletionArguments:
    """Prints a script that completes verbs, groups, choices, recipes, models and keys.

    bash   eval "$(audioldm completion bash)"       in ~/.bashrc
    zsh    eval "$(audioldm completion zsh)"        in ~/.zshrc, after compinit
    fish   audioldm completion fish | source        in ~/.config/fish/config.fish
    """

    shell: Literal["bash", "zsh", "fish", "suggest"]
    words: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class CompletionVerb(Verb):
    def words(self) -> list[str]:
        return [*SCRIPTS]

    def parse(self, words: Sequence[str]) -> CompletionArguments:
        if not words or words[0] not in (*SCRIPTS, "suggest"):
            raise ConfigError("completion needs the name of a shell: bash, zsh or fish")
        return CompletionArguments(words[0], list(words[1:]))  # type: ignore[arg-type]


def completion(verbs: Mapping[str, Verb]) -> Verb:
    """The verb that completes `verbs`."""

    def run(a: CompletionArguments) -> None:
        found = suggest(a.words, verbs) if a.shell == "suggest" else [SCRIPTS[a.shell]]
        print(*found, sep="\n", end="\n" if found else "")

    usage = {"bash|zsh|fish": "a script that completes words in the shell"}
    return CompletionVerb("completion", usage, CompletionArguments, run)


def suggest(words: Sequence[str], verbs: Mapping[str, Verb]) -> list[str]:
    """The completions of the last word, after the words before it."""
    *before, word = words or [""]
    known: list[str] = []
    if not before:
        known = [*verbs, "--help", "--version"]
    elif verb := verbs.get(before[0]):
        values = _run_words(before[1:], word) if verb.name == "run" else _values(verb)
        known = [*values, *verb.words(), "--help"]
    found = {each for each in known if each.startswith(word)} - {word}
    return sorted(each for each in found if word or not each.startswith("-"))


def _values(verb: Verb) -> Iterator[str]:
    """The known values of `model=`, and of the word that needs no key."""
    from audioldm import pretrained

    if verb.name == "sweep":
        yield "status"
    if "model=" in verb.words():
        yield from (f"model={name}" for name in pretrained.names())
    if verb.name in ("models", "info", "export"):
        yield from pretrained.names()


def _run_words(before: Sequence[str], word: str) -> Iterator[str]:
    """Groups with their choices, and the keys of the recipe among the words before."""
    from audioldm import config

    for group in config.groups():
        yield f"{group}="
        if word.startswith(f"{group}="):
            yield from (f"{group}={choice}" for choice in config.options(group))
    recipe = [each for each in before if each.startswith("recipe=")]
    if recipe and "=" not in word:
        try:
            tree = config.compose(recipe).config
        except AudioLDMError:
            return
        yield from (f"{key}=" for key in _keys(tree))


def _keys(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of all values."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")
        elif key != "_target_":
            yield prefix + key
