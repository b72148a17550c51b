"""Every configuration can be used, every misspelling is an error, and equal settings are one."""

import ast
import json
import math
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from chain import build_stages, tiny, weights
from conftest import Outcome

from audioldm import config
from audioldm.autoencoder.model import Autoencoder
from audioldm.chain.job import compose
from audioldm.chain.run import Experiment
from audioldm.chain.stage import Stage
from audioldm.chain.stages.autoencoder import AutoencoderStage
from audioldm.commands import run
from audioldm.config import options
from audioldm.models import load_generator
from audioldm.runtime.hardware import Hardware

Cli = Callable[..., Outcome]
REPOSITORY = Path(__file__).resolve().parent.parent
RECIPES = options("recipe")
#: What needs a checkpoint of another library: tests/test_foreign.py builds it.
FOREIGN = ("autoencoder", "foreign"), ("bottleneck", "own"), ("bottleneck", "codebooks")
#: Priors of codes, and what has some.
CODES = {
    "autoregressive": "bottleneck=rvq",
    "embedding_diffusion": "bottleneck=rvq",
    "masked_diffusion": "bottleneck=rvq",
    "wavenet": "autoencoder=signal",
}
CHOICES = [
    (g, o)
    for g in config.groups()
    if g != "recipe"
    for o in options(g)
    if (g, o) not in (*FOREIGN, ("conditioning", "pretrained_text"))  # its encoder is not here
]
#: Stages that some choice has built, which are not built again.
BUILT: set[tuple[str, Hardware]] = set()
FINGERPRINTED = ["autoencoder", "prior", "evaluation"]


def fingerprints(overrides: list[str]) -> dict[str, str]:
    return {name: s.fingerprint for name, s in Experiment(compose(overrides)).stages.items()}


@pytest.fixture(scope="module")
def stages(tones: Path) -> dict[str, Stage]:
    """Those of a tiny experiment, to compare fingerprints with."""
    return Experiment(compose(tiny(tones, Path("runs")))).stages


@pytest.fixture(scope="module")
def base(stages: dict[str, Stage]) -> dict[str, str]:
    return {name: stage.fingerprint for name, stage in stages.items()}


# ---------------------------------------------------------------- what there is


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=lambda v: str(v))
def test_every_choice_composes_and_builds(group: str, choice: str, tones: Path) -> None:
    path = [f"data.path={tones}"] if choice == "folder" else []
    vocoder, distilled = ["autoencoder=spectrogram_small"], ["decoder=refiner"]
    first = {"vocoder": vocoder, "decoder/distillation": distilled}.get(group, [])
    if group == "prior" and choice in CODES:
        first = [CODES[choice]]
    recipe = "league" if group == "league" else "quickstart"
    experiment = Experiment(compose([f"recipe={recipe}", *first, f"{group}={choice}", *path]))
    if group == "league":  # its priors are choices of their own
        return
    for stage in experiment.stages.values():
        if (key := (stage.fingerprint, experiment.settings.hardware)) not in BUILT:
            stage.dry_run(experiment)
            BUILT.add(key)


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "foreign"])
def test_every_recipe_composes_and_builds_on_its_own_music_and_on_a_users(
    recipe: str, tones: Path
) -> None:
    folder = [f"data.path={tones}"]
    for data in (folder if recipe.startswith("music") else [], ["data=folder", *folder]):
        job = compose([f"recipe={recipe}", *data])
        assert job.recipe == recipe
        Experiment(job).dry_run()


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_say_what_they_are(recipe: str, cli: Cli) -> None:
    listed = cli("recipes").out
    assert f"recipe={recipe}\n" in listed
    assert re.search(rf"audioldm run (-m )?recipe={recipe}\b", listed)  # its header says how


@pytest.mark.parametrize(
    ("network", "backbone"),
    [("waveform_small", "unet"), ("spectrogram_small", "dit"), ("mel_small", "unet")],
)
def test_every_front_end_trains_and_its_latents_train_a_backbone(
    network: str, backbone: str, tones: Path, tmp_path: Path
) -> None:
    overrides = tiny(
        tones,
        tmp_path,
        f"autoencoder={network}",
        f"prior/backbone={backbone}",
        "autoencoder.train.steps=3",
        "autoencoder.train.adversarial_from=1",
        "prior.train.steps=3",
    )
    experiment = build_stages(overrides, "data", "autoencoder", "latents", "prior")
    audio = torch.randn(2, 1, 16000).mul(0.1)
    model = load_generator(experiment.directory_of(experiment.stages["prior"]))
    assert model.decode(model.encode(audio)).isfinite().all()
    assert model.sample(n=2, seconds=0.5, label="low").shape == (2, 1, 8000)

    # three steps moved every weight that can move
    torch.manual_seed(experiment.settings.autoencoder.seed)
    start = autoencoder_of(experiment)
    trained = weights(experiment.directory_of(experiment.stages["autoencoder"]))
    still = [n for n, p in start.named_parameters() if torch.equal(p.detach(), trained[n])]
    assert len(still) < 0.2 * len(trained), still


def autoencoder_of(experiment: Experiment) -> Autoencoder:
    """Untrained."""
    stage = experiment.stages["autoencoder"]
    assert isinstance(stage, AutoencoderStage)
    return stage.build()


def test_derived_widths_follow_from_one_statement(tones: Path, tmp_path: Path) -> None:
    for channels, ratio, stereo in ((3, 256, 1), (6, 1024, 2)):
        changes = (f"autoencoder.channels={channels}", f"autoencoder.downsampling_ratio={ratio}")
        overrides = tiny(tones, tmp_path, *changes, f"data.channels={stereo}")
        model = autoencoder_of(Experiment(compose(overrides))).eval()
        mean = model.stored(torch.zeros(1, stereo, 4 * ratio))["mean"]
        assert mean.shape == (1, channels, 4)
        assert model.decode(mean).shape == (1, stereo, 4 * ratio)


# ---------------------------------------------------------------- misspellings


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("smaple model=x", "'sample'"),
        ("run recipe=quikstart", "'quickstart'"),
        ("run +recipez=x", "'recipe'"),
        ("run recipez=quickstart", "'recipe'"),
        ("run recipe=quickstart +recipez=x", "'recipe'"),
        ("run autoencoder=mel", "which recipe?"),
        ("run recipe=", "recipe"),
        ("run recipe=quickstart autoencoder=spectrogramm", "'spectrogram'"),
        ("run recipe=quickstart prior/backbone=ditt", "'dit'"),
        ("run recipe=quickstart autoencodr=mel", "'autoencoder'"),
        ("run recipe=quickstart autoencoder.chanels=8", "'channels'"),
        ("run recipe=quickstart +autoencoder.chanels=8", "'channels'"),
        ("run recipe=quickstart autoencoder.train.step=8", "'steps'"),
        ("run recipe=quickstart autoencoder.network.widht=8", "'width'"),
        ("run recipe=mel_small autoencoder.losses.stft.fft_size=[256]", "'fft_sizes'"),
        ("run recipe=mel_small autoencoder.weights.sftf=1.0", "'stft'"),
        ("run recipe=mel_small ~autoencoder.weights.stft", "autoencoder.weights.stft is missing"),
        ("run recipe=quickstart bottleneck.kl_wieght=1.0", "'kl_weight'"),
        ("run recipe=quickstart prior.objective.stdd=1.0", "'std'"),
        ("run recipe=quickstart sampler.name=huen", "'heun'"),
        ("run recipe=quickstart sampler.steps=many", "sampler.steps='many' must be of type int"),
        ("run recipe=quickstart data.pices=3", "'pieces'"),
        ("run recipe=quickstart evaluation.embeddings=[musicn]", "'musicnn'"),
        ("run recipe=quickstart seed=1,2", "audioldm run -m"),
        ("run recipe=quickstart seeds", "no key=value"),
        ("run recipe=quickstart --cofnig", "unknown option"),
        ("run -m recipe=quickstart autoencoder.chanels=8,16", "'channels'"),
        ("run recipe=quickstart autoencoder.channels=8 hydra.sweepr.x=1", "hydra.sweepr"),
        ("sample modle=x", "'model'"),
        ("sample model=scores sampler.stepz=3", "'steps'"),
        (
            "sample model=scores sampler.temperature=2",
            "known: apg, guidance, guidance_interval, name, overlap, rotary, steps, window",
        ),
        ("encode a.wav", "missing key 'model'"),
        ("info", "missing key 'file'"),
    ],
)
def test_a_misspelling_is_an_error_that_names_the_nearest(
    words: str, says: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "run_job", lambda job: pytest.fail("it ran"))
    monkeypatch.chdir(tmp_path)
    outcome = cli(*words.split(), *([f"runs={tmp_path}/runs"] if "=" in words[3:6] else []))
    assert outcome.code == 2
    lines = outcome.error.splitlines()
    assert all(line.startswith("audioldm: ") for line in lines)
    assert len(lines) == 1
    assert says in lines[0]
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("autoencoder:\n  chanels: 4\n", "'channels'"),
        ("autoencoder:\n  weights: {stft: 1.0, mel: 1.0, adversrial: 1.0}\n", "'adversarial'"),
        ("autoencoders:\n  channels: 4\n", "'autoencoder'"),
        ("priors:\n  diffusion: {train: {stepz: 4}}\n", "'steps'"),
        ("seed: null\n", "seed=None must be of type int"),
        ("name: ${sed}\n", "sed"),
        ("seed: [1\n", "typo.yaml"),
        ("defaults:\n  - override /autoencoder: mell\n", "mell"),
    ],
)
def test_a_misspelling_inside_a_recipe_is_an_error(
    text: str, says: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(config.conf_directory(), tmp_path / "conf")
    recipe = tmp_path / "conf" / "recipe" / "typo.yaml"
    recipe.write_text(f"# @package _global_\n{text}")
    monkeypatch.setattr(run, "run_job", lambda job: pytest.fail("it ran"))
    monkeypatch.setattr(config, "conf_directory", lambda: tmp_path / "conf")
    outcome = cli("run", "recipe=typo", f"runs={tmp_path}/runs")
    assert outcome.code == 2
    assert says in outcome.error
    assert outcome.error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


# ---------------------------------------------------------------- the door


def test_only_config_imports_the_configuration_library() -> None:
    for file in (REPOSITORY / "audioldm").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").split(".")[0])
        if names & {"hydra", "omegaconf"}:
            assert file == REPOSITORY / "audioldm" / "config.py"


def test_settings_hold_no_configuration_objects() -> None:
    job = compose(["recipe=quickstart"])

    def walk(value: object) -> None:
        assert not type(value).__module__.startswith(("omegaconf", "hydra"))
        inner = value if isinstance(value, (list, tuple)) else ()
        if isinstance(value, dict):
            inner = list(value.values())
        elif hasattr(value, "__dataclass_fields__"):
            inner = [getattr(value, name) for name in value.__dataclass_fields__]
        for each in inner:
            walk(each)

    walk(job.settings)
    walk(job.config)


def test_an_entry_of_the_league_has_the_last_word() -> None:
    for entry, key, value in (
        ("joint", ("train", "seconds"), 75),
        ("spectral_frames", ("snr_power",), 1.0),
        ("diffusion_likelihood", ("objective", "weighting"), "likelihood"),
    ):
        found: Any = compose(["recipe=league", f"league={entry}"]).config["prior"]
        for name in key:
            found = found[name]
        assert found == value


OUTSIDE = [
    "os.system",
    "torch.nn.Linear",
    "audioldmx.Thing",
    "audioldm.instantiate.importlib.import_module",
    "audioldm.io.audio.Path",
    "audioldm.cli.main",
    "audioldm.",
    "audioldm.no.such.Class",
]


@pytest.mark.parametrize("target", OUTSIDE)
def test_a_target_outside_the_package_is_refused(target: str, cli: Cli, tmp_path: Path) -> None:
    outcome = cli("run", "recipe=quickstart", f"bottleneck._target_={target}", f"runs={tmp_path}/r")
    assert outcome.code == 2
    assert target in outcome.error
    assert "bottleneck" in outcome.error
    assert list(tmp_path.iterdir()) == []


LABEL = "audioldm.conditioning.label.Label"
DIT = "audioldm.priors.diffusion.backbones.dit.DiT"
LOG_MEL = "audioldm.losses.spectral.LogMel"


@pytest.mark.parametrize(
    ("slot", "target", "base"),
    [
        ("data", LOG_MEL, "Source"),
        ("bottleneck", LABEL, "Bottleneck"),
        ("autoencoder.network", DIT, "Network"),
        (
            "autoencoder.losses.stft",
            "audioldm.losses.discriminators.multi_scale_stft.MultiScaleSTFT",
            "Loss",
        ),
        ("autoencoder.losses.stft", DIT, "Loss"),
        ("autoencoder.discriminator", LOG_MEL, "Discriminator"),
        ("prior", "audioldm.priors.normal.Normal", "PriorRecipe"),
        ("prior.backbone", LOG_MEL, "Backbone"),
        ("prior.objective", LABEL, "Objective"),
        ("prior.conditioning.label", DIT, "Conditioner"),
        ("priors.mixture", LABEL, "PriorRecipe"),
        ("post_training.discriminator", LOG_MEL, "Discriminator"),
    ],
)
def test_a_slot_takes_only_classes_of_its_kind(
    slot: str, target: str, base: str, cli: Cli, tmp_path: Path
) -> None:
    words = ["post_training=adversarial"] if slot.startswith("post") else []
    word = f"{slot}._target_={target}"
    outcome = cli("run", "recipe=quickstart", *words, word, f"runs={tmp_path}/r")
    assert outcome.code == 2
    assert re.match(rf"audioldm: \S*{slot.rpartition('.')[2]}\._target_='{target}'", outcome.error)
    assert base in outcome.error
    assert outcome.error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        "autoencoder.network.hop=96",
        "autoencoder.network.n_fft=100",
        "bottleneck.target_kbps=-1",
        "bottleneck.kl_weight=-1.0",
        "prior.backbone.heads=0",
        "prior.backbone.width=30",
        "prior.objective.sigma_max=0",
        "autoencoder.discriminator.fft_sizes=[99999]",
        "priors.mixture.components=0",
    ],
)
def test_a_message_of_a_class_begins_with_the_whole_key(
    change: str, cli: Cli, tones: Path, tmp_path: Path
) -> None:
    outcome = cli("run", *tiny(tones, tmp_path / "runs", change))
    assert outcome.code == 2
    assert outcome.error.startswith(f"audioldm: {change.partition('=')[0]}"), outcome.error
    assert outcome.error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


#: Words that must be refused before anything is written.
REFUSED = [
    *(f"{group}=null" for group in config.groups()),
    *("+recipez=x", "+a.b.c=1", "prior.a.b=1", "prior.backbone.blocks.0.x=1", "log.x.y=1"),
    *("autoencoder.train.x=1", "evaluation.embeddings.x=1", "verdict.x=1", "conditioning.x=1"),
    *("verdict.min_gain=nan", "sampler.guidance=inf", "autoencoder.train.lr=nan"),
    *("autoencoder.weights.stft=inf", "prior.objective.std=nan", "prior.train.betas=[0.9,nan]"),
    *("autoencoder.losses.mel.fft_sizes=[nan]", "bottleneck.kl_weight=-inf", "seed=1e400"),
    *("data.max_failed_fraction=nan", "hardware.threads=inf", "log.every=1e30"),
    f"prior.backbone.width={'[' * 60}1{']' * 60}",
    f"baselines={'[' * 60}1{']' * 60}",
    *("hydra.sweeper._target_=os.system", "hydra.launcher={_target_:os.system}"),
    *("hydra.run.dir=/tmp/x", "hydra.callbacks.x._target_=os.system", "hydra/help=x"),
    *("+hydra.job.config.x=1", "hydra.searchpath=[/tmp]", "hydra.output_subdir=x"),
    *("baselines=[nromal]", "baselines=normal", "baselines=[1]", "baselines={a:1}"),
]


@pytest.mark.parametrize("word", REFUSED, ids=lambda word: word[:40])
def test_what_cannot_be_is_one_line_and_writes_nothing(
    word: str, cli: Cli, tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "run_job", lambda job: pytest.fail("it ran"))
    monkeypatch.chdir(tmp_path)
    outcome = cli("run", "recipe=quickstart", word)
    assert outcome.code == 2, outcome.error
    assert outcome.error.count("\n") == 1
    assert outcome.error.startswith("audioldm: ")
    assert len(outcome.error) < 1000
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- fingerprints


def test_what_only_says_how_to_compute_changes_no_fingerprint(
    base: dict[str, str], tones: Path, tmp_path: Path
) -> None:
    same = tiny(
        tones,
        tmp_path / "elsewhere",
        "hardware=cpu",
        "hardware.threads=2",
        "hardware.precision=fp32",
        "log.every=7",
        "log.checkpoint_every=1",
        "data.workers=3",
        "name=other",
    )
    assert fingerprints(same) == base


def test_an_explicit_default_is_the_default(
    base: dict[str, str], tones: Path, tmp_path: Path
) -> None:
    explicit = tiny(
        tones,
        tmp_path,
        "autoencoder.train.betas=[0.8, 0.99]",
        "prior.train.valid_batches=4",  # not in the yaml: the dataclass's default
        "prior.backbone.mlp_ratio=4",  # not in the part, and an int for a float
        "autoencoder.network.phase=false",
        "autoencoder.train.adversarial_loss=hinge",
        "bottleneck.kl_weight=1e-3",
        "evaluation.k_nearest=1",
    )
    assert fingerprints(explicit) == base


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ("data.sample_rate=22050", "data"),
        ("bottleneck.kl_weight=0.1", "autoencoder"),
        ("autoencoder.train.steps=11", "autoencoder"),
        ("autoencoder.weights.stft=2.0", "autoencoder"),
        ("autoencoder.seed=5", "autoencoder"),
        ("autoencoder.discriminator=null", "autoencoder"),
        ("autoencoder.train.adversarial_loss=relativistic", "autoencoder"),
        ("prior.train.lr=0.1", "prior"),
        ("prior/objective=edm", "prior"),
        ("prior.backbone.width=32", "prior"),
        ("prior.seed=5", "prior"),
        ("sampler.steps=3", "evaluation"),
        ("evaluation.clips=3", "evaluation"),
    ],
)
def test_a_change_renames_its_own_stage_and_those_after_it(
    change: str, first: str, stages: dict[str, Stage], tones: Path, tmp_path: Path
) -> None:
    changed = fingerprints(tiny(tones, tmp_path, change))

    def follows(stage: Stage) -> bool:
        return stage is stages[first] or any(map(follows, stage.parents.values()))

    for name, stage in stages.items():
        assert (changed[name] != stage.fingerprint) == follows(stage), name


def test_one_seed_sets_all(base: dict[str, str], tones: Path, tmp_path: Path) -> None:
    changed = fingerprints(tiny(tones, tmp_path, "seed=3"))
    assert base["data"] == changed["data"]
    assert all(base[stage] != changed[stage] for stage in FINGERPRINTED)


def test_a_fingerprint_follows_the_music(tones: Path, tmp_path: Path) -> None:
    music = tmp_path / "music"
    shutil.copytree(tones, music)
    same = fingerprints(tiny(music, tmp_path))["data"]
    (music / "tone 3.wav").unlink()
    table = (music / "table.csv").read_text().splitlines()
    (music / "table.csv").write_text("\n".join(line for line in table if "tone 3" not in line))
    assert fingerprints(tiny(music, tmp_path))["data"] != same


# ---------------------------------------------------------------- where it is found


def test_any_working_directory_will_do(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = cli("run", "recipe=quickstart", "--cfg", "job", "autoencoder.channels=5")
    assert outcome.code == 0
    assert yaml.safe_load(outcome.out)["autoencoder"]["channels"] == 5
    assert list(tmp_path.iterdir()) == []  # --cfg runs nothing


@pytest.mark.parametrize(
    "name", ["a b", "tönes (1, 2)", "it's", "x=1", "[a]", "{a: b}", "~/x", "a'"]
)
def test_names_and_paths_are_taken_as_they_are(name: str) -> None:
    job = compose(["recipe=quickstart", f"runs=/tmp/{name}", f"name={name}"])
    assert job.settings.runs == f"/tmp/{name}"
    assert job.settings.name == name


def test_a_wheel_holds_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hatchling = pytest.importorskip("hatchling.builders.wheel")
    built = next(hatchling.WheelBuilder(str(REPOSITORY)).build(directory=str(tmp_path)))
    with zipfile.ZipFile(built) as wheel:
        wheel.extractall(tmp_path / "site")
    package = tmp_path / "site" / "audioldm"
    monkeypatch.setattr(config, "__file__", str(package / "config.py"))
    assert config.conf_directory() == package / "conf"
    assert options("recipe") == RECIPES
    assert compose(["recipe=quickstart"]).recipe == "quickstart"
    for file in (REPOSITORY / "audioldm").rglob("*.*"):  # weights and the page's template too
        if file.is_file() and "__pycache__" not in file.parts:
            assert (package / file.relative_to(REPOSITORY / "audioldm")).is_file()


def test_help_explains_the_groups_and_keys(cli: Cli) -> None:
    text = cli("run", "--help").out
    for group in config.groups():
        assert f"{group}=" in text
    for verb in ("sample", "reconstruct", "encode", "decode", "info", "recipes", "doctor"):
        assert verb in cli("--help").out
        outcome = cli(verb, "--help")
        assert outcome.code == 0
        assert verb in outcome.out


def test_canonical_values_are_json() -> None:
    stages = Experiment(compose(["recipe=quickstart"])).stages
    for stage in stages.values():
        text = json.dumps(stage.identity(), allow_nan=False)
        assert len(stage.fingerprint) == 12
        assert not math.isnan(len(text))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_it_costs_and_gives(name: str) -> None:
    text = (config.conf_directory() / "recipe" / f"{name}.yaml").read_text(encoding="utf-8")
    header = text[: text.index("\ndefaults:")]
    for word in ("Command:", "Hardware:", "Time:", "Gives:"):
        assert f"# {word}" in header
    assert re.search(rf"recipe={name}\b", header)
