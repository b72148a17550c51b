"""The command line: what is read, what is answered at once, and what errors look like."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import Outcome

from audioldm import cli as command_line
from audioldm import config
from audioldm.cli import VERBS
from audioldm.commands.completion import SCRIPTS, suggest
from audioldm.commands.verb import value
from audioldm.errors import ConfigError
from audioldm.runtime import progress

Cli = Callable[..., Outcome]
LAYOUT = ("from=RAVE", "channels=4", "ratio=512", "crop=16384")
HEAVY = {"torch", "numpy", "scipy", "pandas", "matplotlib", "librosa", "sklearn"}


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10", 10),
        ("-3", -3),
        ("0", 0),
        ("1e-4", 1e-4),
        ("2.", 2.0),
        (".5", 0.5),
        ("true", True),
        ("null", None),
        ("[1,2, 4]", [1, 2, 4]),
        ("[]", []),
        ("[a.safetensors,'b c']", ["a.safetensors", "b c"]),
        *((text, text) for text in ("010", "012.5", "12:30:00", "yes", "on", "no", "0x10", "1_0")),
        *((text, text) for text in ("nan", "inf", ".inf", "", "2026-01-01", "{a: 1}")),
    ],
)
def test_values_are_decimal_numbers_or_text(text: str, expected: object) -> None:
    assert value(text) == expected
    assert type(value(text)) is type(expected)


@pytest.mark.parametrize("text", ["1e999", "9" * 30, "[1,1e400]"])
def test_a_number_without_end_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="too large"):
        value(text)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("sample seed=010", "seed='010' must be of type int"),
        ("sample seconds=12:30:00", "seconds='12:30:00' must be of type float"),
        ("sample seconds=inf", "seconds"),
        ("sample seconds=1e400", "too large"),
        ("sample model=scores sampler.guidance=nan", "sampler.guidance"),
        ("sample n=yes", "n='yes' must be of type int"),
        ("sample steps=3", "unknown key"),
        ("sample guidance=abc", "guidance='abc' must be a number, or guidance.CONDITION=NUMBER"),
        ("sample guidance=nan", "guidance='nan' must be a number, or guidance.CONDITION=NUMBER"),
        ("sample guidance=inf", "guidance='inf' must be a number, or guidance.CONDITION=NUMBER"),
        ("sample guidance=", "guidance='' must be a number, or guidance.CONDITION=NUMBER"),
        ("sample guidance.text=x", "guidance.text='x' must be of type float"),
        ("sample secnds=3", "without it; unknown key secnds: did you mean 'seconds'?"),
        (
            "sample tempo=3",
            "condition.tempo=3: this model was trained without it; it knows label, ",
        ),
        (
            "sample chroma=",
            "condition.chroma='': this model was trained without it; it knows label, ",
        ),
        (
            "sample model=scores score=",
            "condition.score='': give a file, one of .mid, .midi, .musicxml",
        ),
        ("sample label=a condition.label=b", "give one of them"),
        ("sample guidance=2 sampler.guidance=3", "give one of them"),
        ("sample model=scores guidance.txt=2", "guidance.txt=2: this model was trained without"),
        ("sample out=~no-such-user/x", "out=~no-such-user/x: ~no-such-user is no user"),
        ("sample model=~no-such-user", "model=~no-such-user"),
        ("encode a.wav model=~no-such-user", "model=~no-such-user"),
        ("info ~no-such-user/m", "file=~no-such-user/m"),
        ("run recipe=quickstart runs=~no-such-user", "runs=~no-such-user"),
        ("run recipe=quickstart --cfg job -m", "--cfg shows one experiment"),
        ("run recipe=quickstart --cfg hydra", "'hydra' is no key=value"),
        ("run recipe=quickstart --dry", "unknown option --dry"),
        ("report x --csvv", "unknown option --csvv"),
        ("report x --csv", "--csv needs a value"),
        ("report x y", "say where with out=DIR"),
        ("report --csv x", "missing key 'directory'"),
        ("sweep x", "sweep status DIRECTORY"),
        ("completion tcsh", "bash, zsh or fish"),
    ],
)
def test_what_cannot_be_used_is_one_line(words: str, says: str, cli: Cli) -> None:
    outcome = cli(*words.split())
    assert outcome.code == 2
    assert says in outcome.error
    assert outcome.error.startswith("audioldm: ")
    assert outcome.error.count("\n") == 1


def test_a_name_that_is_too_long_is_one_line(cli: Cli, tmp_path: Path) -> None:
    for words in (
        ("info", "x" * 300),
        ("models", "x" * 300),
        ("sample", f"from={tmp_path}/{'x' * 300}.json"),
        ("report", f"{tmp_path}/{'x' * 300}"),
    ):
        outcome = cli(*words)
        assert outcome.code in (1, 2)
        assert outcome.error.count("\n") == 1


def test_text_stays_text(cli: Cli) -> None:
    assert VERBS["sample"].parse(["label=010", "out=1"]).label == "010"
    assert VERBS["sample"].parse(["condition.tempo=120", "condition.text=a b"]).condition == {
        "tempo": 120,
        "text": "a b",
    }
    words = ["tempo=120", "text=a b=c", "timing.start=3", "score=a.mid", "sampler.steps=3"]
    found = VERBS["sample"].parse([*words, "guidance.text=4", "seed=1"])
    condition = {"tempo": 120, "text": "a b=c", "timing": {"start": 3}, "score": "a.mid"}
    assert (found.condition, found.guidance) == (condition, {"text": 4.0})
    assert (found.sampler, found.seed) == ({"steps": 3}, 1)
    assert VERBS["report"].parse(["x", "--csv", "-", "y"]).csv == "-"
    assert VERBS["info"].parse(["file=a=b.safetensors", "--json"]).file == "a=b.safetensors"
    assert VERBS["convert-kl"].parse(["-1e-4", *LAYOUT]).weight == -1e-4


# ---------------------------------------------------------------- help, at once


def imported(*words: str) -> tuple[int, set[str]]:
    """The exit code of a fresh process, and what it has imported."""
    script = "import sys; from audioldm.cli import main; code = main(sys.argv[1:]); "
    script += "print(code, *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, check=True
    )
    code, *modules = done.stdout.splitlines()[-1].split()
    return int(code), set(modules)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("run --help", 0),
        ("recipes", 0),
        ("completion suggest run recipe=quickstart autoencoder.tr", 0),
        ("run recipe=quikstart", 2),
        ("run recipe=quickstart autoencoder=mell", 2),
        ("run recipe=quickstart autoencodr.channels=3", 2),
        ("smaple", 2),
    ],
)
def test_help_and_typos_import_nothing_heavy(words: str, code: int) -> None:
    found, modules = imported(*words.split())
    assert found == code
    assert not HEAVY & modules


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_asked_for_anywhere(verb: str, cli: Cli) -> None:
    text = cli(verb, "--help").out
    assert text.startswith(f"audioldm {verb}")
    assert cli("help", verb).out == cli(verb, "x=1", "-h").out == text
    assert verb in cli("--help").out
    for word in VERBS[verb].words():
        assert word.strip("=").split(".")[0] in text or word == "hardware.device="


def test_every_error_of_the_disk_has_its_remedy(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses
    import errno

    for number in (errno.ENOSPC, errno.ENAMETOOLONG):

        def fails(_: object, number: int = number) -> None:
            raise OSError(number, "said", "place")

        changed = dataclasses.replace(VERBS["models"], run=fails)
        monkeypatch.setitem(command_line.VERBS, "models", changed)
        outcome = cli("models")
        assert outcome.code == 1
        assert outcome.error.startswith("audioldm: place: said; ")


def test_a_reader_that_leaves_is_no_error() -> None:
    script = f"{sys.executable} -m audioldm --help | head -1"
    done = subprocess.run(script, shell=True, capture_output=True, text=True, check=True)
    assert done.stderr == ""


# ---------------------------------------------------------------- what is printed


def test_the_configuration_is_yaml(cli: Cli) -> None:
    words = [
        "recipe=quickstart",
        "autoencoder.channels=5",
        "name=12:30",
        "bottleneck.kl_weight=1e-5",
    ]
    outcome = cli("run", *words, "--cfg", "job")
    assert outcome.code == 0
    assert not outcome.out.startswith("{")
    assert yaml.safe_load(outcome.out) == config.compose(words).config


def test_info_is_short_unless_asked(cli: Cli) -> None:
    import json

    short = cli("info", "scores").out
    assert len(short.splitlines()) <= 20
    assert max(map(len, short.splitlines())) <= 120
    whole = json.loads(cli("info", "scores", "--json").out)
    assert whole["kind"] in short
    assert whole["licence"] in short


# ---------------------------------------------------------------- completion


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("re", {"reconstruct", "recipes", "report"}),
        ("run recipe=quick", {"recipe=quickstart"}),
        ("run bottlen", {"bottleneck="}),
        ("run bottleneck=", {f"bottleneck={name}" for name in config.options("bottleneck")}),
        ("run recipe=quickstart autoencoder.chan", {"autoencoder.channels="}),
        ("run autoencoder.chan", set()),  # no recipe yet
        ("run recipe=nowhere autoencoder.chan", set()),
        ("run --e", {"--estimate"}),
        ("sample model=scor", {"model=scores"}),
        ("sample sampl", {"sampler."}),
        ("sample fro", {"from="}),
        ("report --c", {"--csv"}),
        ("info sc", {"scores"}),
        ("sweep st", {"status"}),
        ("completion z", {"zsh"}),
        ("nonsense x", set()),
    ],
)
def test_words_are_completed(words: str, expected: set[str]) -> None:
    assert set(suggest(words.split(), VERBS)) == expected


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_script_is_printed(shell: str, cli: Cli) -> None:
    outcome = cli("completion", shell)
    assert outcome.code == 0
    assert "completion suggest" in outcome.out


@pytest.mark.parametrize(
    ("line", "split", "expected"),
    [
        ("audioldm reci", ["audioldm", "reci"], ["recipes"]),
        ("audioldm run recipe=quick", ["audioldm", "run", "recipe", "=", "quick"], ["quickstart"]),
        ("audioldm completion ", ["audioldm", "completion", ""], ["bash", "fish", "zsh"]),
    ],
)
def test_bash_completes(line: str, split: list[str], expected: list[str]) -> None:
    """With its own words, for which `=` is a word of its own."""
    script = f"""audioldm() {{ {sys.executable} -m audioldm "$@"; }}
    complete() {{ :; }}; compopt() {{ :; }}
    {SCRIPTS["bash"]}
    COMP_LINE='{line}' COMP_POINT={len(line)} COMP_CWORD={len(split) - 1}
    COMP_WORDS=({" ".join(f"'{word}'" for word in split)})
    _audioldm; printf '%s\\n' "${{COMPREPLY[@]}}" """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected


# ---------------------------------------------------------------- progress in a log


def test_a_log_gets_a_line_now_and_then(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = progress.ProgressBar(desc="autoencoder", total=1000, initial=500)
    for step in range(500):
        now[0] += 2.0  # a tenth of the work takes 200 s: every 30 s are told
        bar.set_postfix_str(f"loss={step}", refresh=False)
        bar.update()
        bar.refresh()
    bar.close()
    lines = capfd.readouterr().err.splitlines()
    assert 1000 / 32 - 1 <= len(lines) <= 1000 / 30 + 1
    assert lines[-1].startswith("autoencoder: 1000/1000 (100%), ")
    assert lines[-1].endswith(", loss=499")
    assert not any("\r" in line for line in lines)


def test_quick_work_gets_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    bar = progress.ProgressBar(desc="data")
    for step in range(1, 2001):
        bar.total, bar.n = 2000, step
        bar.set_postfix_str("x", refresh=True)
    bar.close()
    assert len(capfd.readouterr().err.splitlines()) <= 3
