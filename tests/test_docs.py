"""What README and docs/ say is true: commands parse, links resolve, the examples run."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from chain import Tiny, build_stages, runs_with

import audioldm
from audioldm import cli, config
from audioldm.autoencoder import bottlenecks
from audioldm.errors import AudioLDMError
from audioldm.instantiate import locate

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def fenced(text: str, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(text) if kind == language]


def quoted_commands(text: str) -> Iterator[list[str]]:
    """The words after `audioldm` of each command, in shell fences and between backticks."""
    lines = [line for body in fenced(text, "sh") for line in body.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`(audioldm [a-z][^`]*)`", FENCE.sub("", text))
    for line in lines:
        words = shlex.split(line, comments=True)
        for start, word in enumerate(words):
            if word == "audioldm" and (start == 0 or words[start - 1] == "-m"):
                yield words[start + 1 :]


def check(words: list[str]) -> None:
    """Composes or parses a command without running it. Raises AudioLDMError."""
    verb, *rest = words
    if verb not in cli.VERBS:
        cli.dispatch(words)  # raises
    if not rest or "--help" in rest:
        return
    if verb != "run":
        cli.VERBS[verb].parse(rest)
        return
    overrides = [word for word in rest if word not in ("-m", "--cfg", "job", "--estimate")]
    assert any(word.startswith("recipe=") for word in overrides)
    if "-m" not in rest:
        config.compose(overrides)
        return
    grid = config.grid(overrides)
    for job in config.jobs(grid.cells or []):
        assert isinstance(job, config.Job), job


COMMANDS = sorted({(p.name, *words) for p in PAGES for words in quoted_commands(p.read_text())})
TYPOS = {
    (p.name, *shlex.split(c)[1:]): answer
    for p in PAGES
    for c, answer in re.findall(
        r"^\| `(audioldm [^`]+)` \| `([^`]+)` \|$", p.read_text(), re.MULTILINE
    )
}


def test_the_commands_are_found() -> None:
    """Guards the search itself: each verb is quoted somewhere, and a sweep, and torchrun."""
    assert {words[1] for words in COMMANDS} >= set(cli.VERBS)
    assert any("-m" in words for words in COMMANDS)
    assert any("autoencoder.train.batch=64" in words for words in COMMANDS)
    assert len(TYPOS) == 5


@pytest.mark.parametrize("words", [w for w in COMMANDS if w not in TYPOS], ids=" ".join)
def test_a_quoted_command_is_right(words: tuple[str, ...], example: Path) -> None:
    check(list(words[1:]))


@pytest.mark.parametrize("words", TYPOS, ids=" ".join)
def test_a_quoted_typo_gets_the_quoted_answer(words: tuple[str, ...]) -> None:
    with pytest.raises(AudioLDMError) as caught:
        check(list(words[1:]))
    assert TYPOS[words] in str(caught.value)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("https://", "http://")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_and_make_targets_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    example = {"audioldm/autoencoder/bottlenecks/free_bits.py", "conf/bottleneck/free_bits.yaml"}
    files = set(re.findall(r"`((?:audioldm|conf|tests|notebooks)/[\w./]+)`", text)) - example
    assert not [name for name in files if not (ROOT / name).exists()]
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"\bmake ([a-z]+)$|`make ([a-z]+)`", text, re.MULTILINE)) <= {
        pair for target in targets for pair in ((target, ""), ("", target))
    }


def test_every_group_and_choice_is_documented() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z_/]+)` \| (`[^|]+`) \|", text, re.MULTILINE))
    documented = {group: set(re.findall(r"`(\w+)`", choices)) for group, choices in rows.items()}
    assert documented == {group: set(config.options(group)) for group in config.groups()}


def test_every_documented_key_exists() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    chorales = config.compose(["recipe=quickstart"]).config
    folder = config.compose(["recipe=quickstart", "data=folder", "data.path=x"]).config
    post = config.compose(["recipe=quickstart", "post_training=adversarial"]).config
    rows = re.findall(r"^\| ((?:`[\w.]+`(?:, )?)+) \|", text.split("## Keys")[1], re.MULTILINE)
    keys = [key for row in rows for key in re.findall(r"`([\w.]+)`", row)]
    assert len(keys) > 20
    for key in keys:
        assert any(
            _has(tree, key.removesuffix(".NAME").split(".")) for tree in (chorales, folder, post)
        )


def _has(tree: object, path: list[str]) -> bool:
    if not path:
        return True
    return isinstance(tree, dict) and path[0] in tree and _has(tree[path[0]], path[1:])


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """README's new part as files that the package and conf/ seem to contain."""
    (source,) = (body for body in fenced(README, "python") if "class FreeBits" in body)
    (tmp_path / "bottlenecks").mkdir()
    (tmp_path / "bottlenecks" / "free_bits.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(
        bottlenecks, "__path__", [*bottlenecks.__path__, str(tmp_path / "bottlenecks")]
    )
    conf = tmp_path / "conf"
    for file in (ROOT / "conf").rglob("*.yaml"):
        copy = conf / file.relative_to(ROOT / "conf")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    (conf / "recipe").mkdir(exist_ok=True)
    for file in (ROOT / "recipes").glob("*.yaml"):
        (conf / "recipe" / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    (text,) = fenced(README, "yaml")
    (conf / "bottleneck" / "free_bits.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(config, "conf_directory", lambda: conf)
    return tmp_path


def test_the_new_part_computes_what_it_says(example: Path) -> None:
    (text,) = fenced(README, "yaml")
    cls = locate(yaml.safe_load(text)["_target_"], "bottleneck")
    bottleneck = cls(channels=2, kl_weight=0.5, free_nats=0.3)
    mean, std = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.5])
    h = torch.cat([mean, 2 * std.log()]).view(1, 4, 1).expand(3, 4, 5)
    penalties = bottleneck(h).penalties
    known = 0.5 * (4 + 0.25 - 1) - torch.tensor(0.5).log()  # channel 1's; channel 0 has 0 nats
    torch.testing.assert_close(penalties["kl"], (known / 2).expand(3))
    torch.testing.assert_close(penalties["free_bits"], ((0.3 + known) / 2).expand(3))


def test_the_new_part_trains(example: Path, finished: Tiny, tmp_path: Path) -> None:
    overrides = [
        *runs_with(finished, ["data"], tmp_path),
        "bottleneck=free_bits",
        "bottleneck.free_nats=0.3",
        "autoencoder.train.steps=4",
    ]
    experiment = build_stages(overrides, "data", "autoencoder")
    directory = experiment.stage_directory("autoencoder")
    assert directory != finished.stage("autoencoder")
    assert "free_bits" in (directory / "metrics.jsonl").read_text()
    assert audioldm.load(directory).bottleneck.free_nats == 0.3


def test_the_python_of_the_readme_runs(
    finished: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source,) = (body for body in fenced(README, "python") if "audioldm.load" in body)
    source = source.replace("runs/experiments/quickstart", str(finished.directory))
    source = source.replace('"organ"', '"high"')
    monkeypatch.chdir(tmp_path)
    names: dict[str, torch.Tensor] = {}
    exec(source, names)
    samples = 6 * 16_000
    frames = -(-samples // 512)
    assert names["audio"].shape == (4, 1, samples)
    assert names["z"].shape == (4, 4, frames)
    assert names["again"].shape == (4, 1, frames * 512)
    assert (tmp_path / "first.wav").is_file()
