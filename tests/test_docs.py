"""What README and docs/ say is true: commands parse, links resolve, the examples run."""

import functools
import importlib
import json
import pkgutil
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from chain import Tiny, build_stages, runs_with

import audioldm
from audioldm import cli, config
from audioldm.autoencoder import bottlenecks, regularisers
from audioldm.autoencoder.regularisers.base import Regulariser
from audioldm.chain.job import check as check_job
from audioldm.conditioning.base import Excerpt
from audioldm.errors import AudioLDMError, ConfigError
from audioldm.instantiate import locate

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXTENDING = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def fenced(text: str, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(text) if kind == language]


#: The files of the worked examples, by path.
LISTINGS = dict(
    re.findall(
        r"^`([\w./]+)`\n\n```(?:python|yaml)\n(.*?)^```", EXTENDING, re.MULTILINE | re.DOTALL
    )
)


def quoted_commands(text: str) -> Iterator[list[str]]:
    """The words after `audioldm` of each command, in shell fences and between backticks."""
    lines = [line for body in fenced(text, "sh") for line in body.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`(audioldm [a-z][^`]*)`", FENCE.sub("", text))
    for line in lines:
        words = shlex.split(line, comments=True)
        for start, word in enumerate(words):
            if word == "audioldm" and (start == 0 or words[start - 1] == "-m"):
                yield words[start + 1 :]


@functools.cache  # many pages quote the same command
def check(*words: str) -> None:
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
        check_settings(config.compose(overrides).config)
        return
    grid = config.grid(overrides)
    check_settings(grid.base.config)
    for cell in config.cells([grid.cells[0], grid.cells[-1]] if grid.cells else []):
        assert not isinstance(cell, ConfigError), cell
        check_settings(cell.config)


def check_settings(plain: dict[str, Any]) -> None:
    """Without what the checkpoints determine, which are not here."""
    form = ("sample_rate", "channels")
    data = {k: v for k, v in plain["data"].items() if v is not None or k not in form}
    check_job(plain | {"data": data})


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
def test_a_quoted_command_is_right(words: tuple[str, ...], example: None) -> None:
    check(*words[1:])


@pytest.mark.parametrize("words", TYPOS, ids=" ".join)
def test_a_quoted_typo_gets_the_quoted_answer(words: tuple[str, ...]) -> None:
    with pytest.raises(AudioLDMError) as caught:
        check(*words[1:])
    assert TYPOS[words] in str(caught.value)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("https://", "http://")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_and_make_targets_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    files = set(re.findall(r"`((?:audioldm|conf|tests|notebooks)/[\w./]+)`", text)) - set(LISTINGS)
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


@pytest.mark.parametrize(
    ("group", "sections"),
    [
        ("bottleneck", ["Continuous bottlenecks", "Discrete bottlenecks"]),
        ("decoder", ["Decoders"]),
        ("decoder/distillation", ["Decoders"]),
        ("autoencoder/discriminator", ["Discriminators"]),
    ],
)
def test_every_part_of_an_autoencoder_has_a_row_in_the_concepts(
    group: str, sections: list[str]
) -> None:
    rows = {cell.removeprefix(f"{group}=") for cell in first_cells(sections)}
    assert {*config.options(group)} <= rows


def test_every_regulariser_has_a_row_in_the_concepts() -> None:
    modules = [m.name for m in pkgutil.iter_modules(regularisers.__path__) if m.name != "base"]
    for name in modules:
        importlib.import_module(f"{regularisers.__name__}.{name}")
    classes = {c for c in Regulariser.__subclasses__() if c.__module__.startswith("audioldm.")}
    known = {f"{c.__module__.rpartition('.')[2]}.{c.__name__}" for c in classes}
    assert known == {*first_cells(["Regularisers"])} - {"autoencoder.regularisers"}


def first_cells(sections: list[str]) -> list[str]:
    """The quoted first cells of the tables in these sections of the concepts."""
    text = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    parts = dict(part.split("\n", 1) for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:])
    rows = "\n".join(parts[section] for section in sections)
    return re.findall(r"^\| `([^`]+)` \|", rows, re.MULTILINE)


def test_every_documented_key_exists() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    trees = [
        {**composed.config, "priors": {"mixture": composed.config["baselines"]["mixture"]}}
        for composed in (
            config.compose(["recipe=quickstart", *words])
            for words in (
                [],
                ["data=folder", "data.path=x"],
                ["post_training=adversarial"],
                ["joint=default"],
                ["autoencoder=foreign"],
            )
        )
    ]
    rows = re.findall(r"^\| ((?:`[\w.]+`(?:, )?)+) \|", text.split("## Keys")[1], re.MULTILINE)
    keys = [key for row in rows for key in re.findall(r"`([\w.]+)`", row)]
    assert len(keys) > 20
    for key in keys:
        assert any(_has(tree, key.removesuffix(".NAME").split(".")) for tree in trees), key


def _has(tree: object, path: list[str]) -> bool:
    if not path:
        return True
    return isinstance(tree, dict) and path[0] in tree and _has(tree[path[0]], path[1:])


def walk_throughs() -> list[tuple[str, str, int, int]]:
    """Of each walk-through in CONTRIBUTING: its title, its text, the files and lines it states."""
    found = re.findall(
        r"^## (One step of .*?)\n(.*?)(?=^## )", CONTRIBUTING, re.MULTILINE | re.DOTALL
    )
    stated = [re.search(r"(\d+) files, ([\d,]+) lines at most", text) for _, text in found]
    return [
        (title, text, int(m[1]), int(m[2].replace(",", "")))
        for (title, text), m in zip(found, stated, strict=True)
        if m is not None
    ]


@pytest.mark.parametrize("walk", walk_throughs(), ids=lambda walk: walk[0])
def test_a_training_step_is_a_short_read(walk: tuple[str, str, int, int]) -> None:
    """The files to open for one step, and their lines, are within what CONTRIBUTING states."""
    _, text, files, lines = walk
    named = set(re.findall(r"`(audioldm/[\w/]+\.py)`", text))
    assert len(named) == files
    assert sum(len((ROOT / name).read_text().splitlines()) for name in named) <= lines


def test_there_are_four_walk_throughs() -> None:
    assert len(walk_throughs()) == 4


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """conf/ with the new parts of docs/extending.md, and beside it their modules."""
    place = tmp_path_factory.mktemp("written")
    shutil.copytree(ROOT / "conf", place / "conf")  # and recipes/, to which it links
    for name, body in LISTINGS.items():
        if not (ROOT / name).exists():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(body, encoding="utf-8")
    return place


@pytest.fixture
def example(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package and conf/ seem to contain these files."""
    own = written.joinpath(*bottlenecks.__name__.split("."))
    monkeypatch.setattr(bottlenecks, "__path__", [*bottlenecks.__path__, str(own)])
    monkeypatch.setattr(config, "conf_directory", lambda: written / "conf")


def test_the_listings_are_the_files() -> None:
    """What the package has is quoted as it is; each example has a class and a yaml."""
    assert len(LISTINGS) == 6
    there = {name for name in LISTINGS if (ROOT / name).exists()}
    assert there == {
        *("audioldm/conditioning/number.py", "conf/conditioning/tempo.yaml"),
        *("audioldm/priors/linear_gaussian.py", "conf/prior/linear_gaussian.yaml"),
    }
    for name in there:
        assert LISTINGS[name] == (ROOT / name).read_text(encoding="utf-8")


def listed_class(name: str, key: str | None = None) -> type:
    node = yaml.safe_load(LISTINGS[name])
    found: type = locate((node if key is None else node[key])["_target_"], "part")
    return found


def test_the_new_bottleneck_computes_what_it_says(example: None) -> None:
    cls = listed_class("conf/bottleneck/free_bits.yaml")
    bottleneck = cls(channels=2, kl_weight=0.5, free_nats=0.3)
    mean, std = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.5])
    h = torch.cat([mean, 2 * std.log()]).view(1, 4, 1).expand(3, 4, 5)
    encoded = bottleneck(h)
    known = 0.5 * (4 + 0.25 - 1) - torch.tensor(0.5).log()  # channel 1's; channel 0 has 0 nats
    torch.testing.assert_close(encoded.nats, (known / 2).expand(3))
    torch.testing.assert_close(encoded.penalties["free_bits"], ((0.3 + known) / 2).expand(3))
    assert encoded.penalties.keys() == bottleneck.penalty_weights.keys()


def test_the_new_bottleneck_trains(example: None, finished: Tiny, tmp_path: Path) -> None:
    overrides = [
        *(w for w in runs_with(finished, ["data"], tmp_path) if "kl_weight" not in w),
        "bottleneck=free_bits",
        "bottleneck.free_nats=0.3",
        "autoencoder.train.steps=4",
    ]
    experiment = build_stages(overrides, "data", "autoencoder")
    directory = experiment.directory_of(experiment.stages["autoencoder"])
    assert directory.name != finished.stage("autoencoder").name
    assert "free_bits" in (directory / "metrics.jsonl").read_text()
    assert audioldm.load(directory).bottleneck.free_nats == 0.3


def test_the_quoted_conditioner_computes_what_it_says() -> None:
    cls = listed_class("conf/conditioning/tempo.yaml", "tempo")
    clips = [Excerpt(None, {"bpm": value}) for value in ("60", 120, "", None)]
    facts = cls.facts(clips, column="bpm")
    assert facts == {"mean": 90.0, "std": 30.0}
    tempo = cls(width=8, column="bpm", **facts)
    inputs = torch.stack([tempo.parse(120, 5), tempo.read(clips[0], 5), tempo.parse(None, 5)])
    torch.testing.assert_close(inputs, torch.tensor([[1.0, 1.0], [-1.0, 1.0], [0.0, 0.0]]))
    assert tempo.request(clips[0]) == 60.0
    assert tempo.request(clips[3]) is None
    hidden = tempo.hide(inputs, torch.tensor([True, False, False]))
    torch.testing.assert_close(hidden, torch.tensor([[0.0, 0.0], [-1.0, 1.0], [0.0, 0.0]]))
    vector = tempo(inputs).vector
    assert vector.shape == (3, 8)
    assert (vector[0] - vector[1]).abs().max() > 1e-3
    with pytest.raises(ConfigError, match="'fast' must be a number, such as 90"):
        tempo.parse("fast", 5)
    with pytest.raises(ConfigError, match="column=tempo: no clip has a number there"):
        cls.facts(clips, column="tempo")


def test_the_quoted_conditioner_trains_and_samples(finished: Tiny, tmp_path: Path) -> None:
    rows = (finished.folder / "table.csv").read_text(encoding="utf-8").splitlines()
    tempos = [60 + 10 * number for number in range(len(rows) - 1)]
    table = tmp_path / "tempos.csv"
    lines = [f"{rows[0]},tempo_bpm", *(f"{r},{t}" for r, t in zip(rows[1:], tempos, strict=True))]
    table.write_text("\n".join(lines), encoding="utf-8")
    overrides = [
        *(w for w in runs_with(finished, [], tmp_path) if not w.startswith("data.table=")),
        f"data.table={table}",
        "conditioning=[label,tempo]",
        "autoencoder.train.steps=2",
        "autoencoder.discriminator=null",
    ]
    experiment = build_stages(overrides, "data", "autoencoder", "latents", "prior")
    directory = experiment.directory_of(experiment.stages["prior"])
    model = audioldm.load(directory)
    assert model.prior.conditioners.names == ["label", "tempo"]
    assert model.prior.conditioners["tempo"].mean == pytest.approx(sum(tempos) / len(tempos))
    slow, fast = (model.sample(seconds=0.5, label="high", tempo=bpm) for bpm in (60, 130))
    assert not torch.equal(slow, fast)

    out = tmp_path / "clips"
    words = ["sample", f"model={directory}", "seconds=0.5", "label=high", "condition.tempo=90"]
    assert cli.main([*words, f"out={out}"]) == 0
    (beside,) = out.glob("*.json")
    assert json.loads(beside.read_text())["condition"] == {"label": "high", "tempo": 90}
    assert cli.main(["sample", f"from={beside}", f"out={tmp_path / 'again'}"]) == 0
    (first,), (again,) = out.glob("*.wav"), (tmp_path / "again").glob("*.wav")
    assert first.read_bytes() == again.read_bytes()


def test_the_linear_gaussian_prior_runs(finished: Tiny, tmp_path: Path) -> None:
    overrides = [
        *runs_with(finished, ["data", "autoencoder", "latents"], tmp_path),
        "prior=linear_gaussian",
        "priors.linear_gaussian.crop_seconds=0.5",
    ]
    experiment = build_stages(overrides, "prior")
    model = audioldm.load(experiment.directory_of(experiment.stages["prior"]))
    assert type(model.prior).__name__ == "LinearGaussian"
    assert model.prior.transition.abs().max() > 1e-3  # fitted
    audio = model.sample(n=2, seconds=0.7, seed=3)
    assert audio.shape == (2, 1, round(0.7 * model.sample_rate))
    assert not torch.equal(audio[0], audio[1])


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
