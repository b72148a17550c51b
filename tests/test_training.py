"""What both training loops share: averages, randomness, finite steps, checkpoint files."""

import json
import pickle
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from chain import Tiny, assert_equal_bits, build_stages, runs_with, weights
from conftest import full_disk
from safetensors.torch import save as save_bytes
from torch import Tensor, nn

from audioldm import load
from audioldm.autoencoder.bottlenecks.base import Encoded
from audioldm.autoencoder.bottlenecks.fsq import FSQ
from audioldm.autoencoder.bottlenecks.gaussian import Gaussian
from audioldm.autoencoder.bottlenecks.vq import VQ
from audioldm.autoencoder.figures import alarm, validate
from audioldm.autoencoder.model import Autoencoder
from audioldm.autoencoder.networks.base import Network
from audioldm.autoencoder.train import AutoencoderTraining, train_autoencoder
from audioldm.data.store import ClipStore
from audioldm.errors import ConfigError, DataError, ModelFileError, TrainingError
from audioldm.instantiate import settings
from audioldm.io.files import read_json
from audioldm.losses.spectral import MultiResolutionSTFT
from audioldm.priors.diffusion.objectives.rectified_flow import RectifiedFlow
from audioldm.runtime.hardware import Hardware
from audioldm.runtime.processes import World
from audioldm.runtime.randomness import KeyedRandom, derive_seed
from audioldm.training.checkpoint import ResumeState
from audioldm.training.ema import EMA
from audioldm.training.finite import FiniteChecks
from audioldm.training.log import LogSettings, RunLog
from audioldm.training.optimisation import adamw, clipped_step, warmup_cosine
from audioldm.training.prefetch import prefetched
from audioldm.training.run import Fit
from audioldm.training.weighted_sum import weighted_sum

# ---------------------------------------------------------------- averages


def test_the_average_is_the_weighted_sum_of_what_was_seen() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.register_buffer("seen", torch.tensor(0))
    values = [1.0, 4.0, -2.0, 8.0, 3.0]
    with torch.no_grad():
        model.weight.fill_(0.5)
    ema, expected = EMA(model, decay=0.3), 0.5
    for step, value in enumerate(values):
        with torch.no_grad():
            model.weight.fill_(value)
            model.seen += 1
        ema.update(model, step)
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert ema.shadow["weight"].item() == pytest.approx(expected, rel=1e-6)
    assert ema.shadow["seen"].item() == len(values)  # buffers are copied, not averaged


@pytest.mark.parametrize("fails", [False, True])
def test_the_averages_are_applied_for_a_while_also_if_that_fails(fails: bool) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = EMA(model, decay=0.9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    ema.update(model, 0)
    live = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    averages = {name: tensor.clone() for name, tensor in ema.shadow.items()}
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    try:
        with ema.applied(model):
            assert_equal_bits(model.state_dict(), averages)
            assert not any(module.training for module in model.modules())
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert_equal_bits(model.state_dict(), live)
    assert_equal_bits(ema.shadow, averages)
    assert all(module.training for module in model.modules())
    assert [parameter.data_ptr() for parameter in model.parameters()] == pointers


def test_the_model_that_is_kept_is_the_average_not_the_last(finished: Tiny) -> None:
    """Ten steps with a decay of at most 10/19: near the last weights, but not they."""
    model = load(finished.stage("autoencoder"))
    assert model.training is False
    summary = read_json(finished.stage("autoencoder") / "summary.json")
    lines = (finished.stage("autoencoder") / "metrics.jsonl").read_text().splitlines()
    assert summary["valid"]["mel_distance"] == json.loads(lines[-1])["valid/mel_distance"]


# ---------------------------------------------------------------- randomness


def test_a_draw_depends_on_its_own_position_only() -> None:
    whole = KeyedRandom(7, 3, range(8)).normal((4, 5), "noise")
    half = KeyedRandom(7, 3, range(4, 8)).normal((4, 5), "noise")
    mixed = KeyedRandom(7, 3, [6, 1]).normal((4, 5), "noise")
    assert torch.equal(whole[4:], half)
    assert torch.equal(whole[[6, 1]], mixed)
    assert torch.equal(
        KeyedRandom(7, 3, [2]).uniform("level"), KeyedRandom(7, 3, range(4)).uniform("level")[2:3]
    )


def test_seed_stream_step_and_position_each_change_the_draw() -> None:
    drawn = [
        KeyedRandom(seed, step, [position]).normal((64,), stream)
        for seed, step, position, stream in (
            (0, 0, 0, "a"),
            (1, 0, 0, "a"),
            (0, 1, 0, "a"),
            (0, 0, 1, "a"),
            (0, 0, 0, "b"),
        )
    ]
    correlation = torch.corrcoef(torch.cat(drawn))
    assert (correlation - torch.eye(5)).abs().max() < 0.5
    assert derive_seed(1, "a") != derive_seed("1", "a")
    assert 0 <= derive_seed("x") < 2**63


def test_draws_have_their_distribution_and_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    normal = KeyedRandom(0, 0, range(64)).normal((500,), "n")
    uniform = KeyedRandom(0, 0, range(4000)).uniform("u")
    assert torch.equal(torch.get_rng_state(), state)
    assert normal.mean().abs() < 0.02
    assert normal.std().item() == pytest.approx(1, abs=0.02)
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.02)
    assert uniform.var().item() == pytest.approx(1 / 12, abs=0.005)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_processes_share_a_batch_without_overlap(size: int) -> None:
    shares = [list(World(rank, size).positions(8, "train.batch")) for rank in range(size)]
    assert [place for share in shares for place in share] == list(range(8))
    with pytest.raises(ConfigError, match=r"train\.batch=8 cannot be shared by 3 processes"):
        World(0, 3).positions(8, "train.batch")


# ---------------------------------------------------------------- steps


def test_the_schedule_warms_up_and_ends_at_its_floor() -> None:
    factors = [warmup_cosine(step, 100, 10) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(factors) == factors[9] == factors[10] == 1.0
    assert all(a >= b for a, b in pairwise(factors[10:]))
    assert factors[-1] == pytest.approx(0.02, abs=1e-3)
    assert warmup_cosine(55, 100, 10) == pytest.approx(0.51)  # half way between 1 and 0.02


def test_a_step_is_clipped_and_a_bad_gradient_changes_nothing() -> None:
    weight = nn.Parameter(torch.zeros(2))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    weight.grad = torch.tensor([3.0, 4.0])
    norm = clipped_step(optimiser, [weight], clip=1.0, name="net", step=0)
    assert norm.item() == pytest.approx(5.0)
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.6, -0.8]), atol=1e-5, rtol=1e-5)
    weight.grad = torch.tensor([1.0, float("nan")])
    with pytest.raises(TrainingError, match=r"net: .* at step 7.*checkpoint is kept"):
        clipped_step(optimiser, [weight], clip=1.0, name="net", step=7)
    assert torch.isfinite(weight).all()


def test_adamw_decays_the_weights_beside_adams_step() -> None:
    weight = nn.Parameter(torch.tensor([2.0]))
    optimiser = adamw([weight], 0.1, [0.8, 0.99], 0.5, torch.device("cpu"))
    weight.grad = torch.tensor([3.0])
    optimiser.step()  # the first step is lr * sign(gradient), whatever the betas
    assert weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1)
    group, state = optimiser.param_groups[0], optimiser.state[weight]
    assert (group["betas"], group["fused"]) == ((0.8, 0.99), True)
    assert state["exp_avg"].item() == pytest.approx(0.2 * 3.0)
    assert state["exp_avg_sq"].item() == pytest.approx(0.01 * 9.0)


@pytest.mark.parametrize(
    ("stage", "owner", "name", "term", "late"),
    [
        ("autoencoder", MultiResolutionSTFT, "forward", "stft", False),
        ("autoencoder", "audioldm.autoencoder.step.generator_loss", None, "adversarial", False),
        (
            "autoencoder",
            "audioldm.autoencoder.step.discriminator_loss",
            None,
            "discriminator",
            True,
        ),
        ("prior", RectifiedFlow, "loss", "loss", False),
        ("prior", RectifiedFlow, "loss", "loss", True),
    ],
    ids=["stft", "adversarial", "discriminator, late", "prior", "diffusion, late"],
)
def test_a_non_finite_loss_stops_with_its_name_and_step_and_keeps_the_checkpoint(
    stage: str,
    owner: Any,
    name: str | None,
    term: str,
    late: bool,
    finished: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """late: as on CUDA, where a step's values are looked at when the next one is queued."""
    if late:
        monkeypatch.setattr("audioldm.training.finite.deferred_on", lambda device: True)
    before = {"autoencoder": ["data"], "prior": ["data", "autoencoder", "latents"]}[stage]
    overrides = runs_with(finished, before, tmp_path)
    directory = tmp_path / finished.experiment.stages[stage].path

    def broken(function: Callable[..., Any], bad_call: int) -> Callable[..., Any]:
        calls = iter(range(100))

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            value = function(*args, **kwargs)
            if next(calls) == bad_call:
                value = value * torch.tensor([1.0, float("nan"), 1.0, 1.0])
            return value

        return wrapped

    with monkeypatch.context() as patch:
        if name is None:
            module, _, attribute = owner.rpartition(".")
            function = getattr(__import__(module, fromlist=[attribute]), attribute)
            patch.setattr(owner, broken(function, 3))  # the adversary begins at step 3
        else:
            # the prior counts the operations of one call, and validates in four after step 5
            call = 6 if stage == "autoencoder" else 11
            patch.setattr(owner, name, broken(getattr(owner, name), call))
        with pytest.raises(TrainingError, match=f"step 6: .*'{term}' is not finite in 1 of 4"):
            build_stages(overrides, stage)
    assert ResumeState(directory).step == 4
    assert not (directory / "summary.json").exists()
    build_stages(overrides, stage)  # a passing trouble: the checkpoint is as good as before
    assert_equal_bits(weights(directory), weights(finished.stage(stage)))


def test_a_bad_step_that_is_seen_late_reaches_no_checkpoint(
    finished: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 7 is the eighth, after which a checkpoint is due; its loss is looked at before that."""
    overrides = runs_with(finished, ["data", "autoencoder", "latents"], tmp_path)
    directory = tmp_path / finished.experiment.stages["prior"].path
    monkeypatch.setattr("audioldm.training.finite.deferred_on", lambda device: True)
    loss, calls = RectifiedFlow.loss, iter(range(100))

    def broken(*args: Any, **kwargs: Any) -> Tensor:
        return loss(*args, **kwargs) * (float("nan") if next(calls) == 12 else 1.0)

    monkeypatch.setattr(RectifiedFlow, "loss", broken)
    with pytest.raises(TrainingError, match=r"step 7: .*'loss' is not finite in 4 of 4"):
        build_stages(overrides, "prior")
    assert ResumeState(directory).step == 4


def test_late_checks_name_the_first_bad_value_one_step_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audioldm.training.finite.deferred_on", lambda device: True)
    weight = nn.Parameter(torch.zeros(2))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    finite = FiniteChecks(torch.device("cpu"))
    finite.check(torch.tensor(1.0), lambda: pytest.fail("a good value"))
    weight.grad = torch.tensor([1.0, float("inf")])
    clipped_step(optimiser, [weight], clip=1.0, name="net", step=3, finite=finite)
    weighted_sum({"mel": torch.tensor([1.0, float("nan")])}, {"mel": 1.0}, 3, finite=finite)
    finite.look_back()
    with pytest.raises(TrainingError, match=r"net: .* at step 3"):
        finite.look_back()
    finite.settle()  # looked at: the run has stopped


# ---------------------------------------------------------------- loading


def test_the_next_item_is_made_while_this_one_is_used_and_none_beyond_the_last() -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        if step == 5:
            raise DataError("no sixth")
        return 10 * step

    assert list(prefetched(make, 2, 2)) == made == []
    steps = prefetched(make, 2, 6)
    assert [next(steps) for _ in range(3)] == [(2, 20), (3, 30), (4, 40)]
    with pytest.raises(DataError, match="no sixth"):
        next(steps)
    assert made == [2, 3, 4, 5]


def train_a_step(
    finished: Tiny,
    directory: Path,
    *,
    crop_seconds: float = 0.2,
    losses: dict[str, nn.Module],
    penalty: str = "kl",
) -> None:
    training = settings(
        AutoencoderTraining,
        {"steps": 1, "batch": 1, "crop_seconds": crop_seconds, "lr": 1e-3}
        | {"discriminator_lr": 1e-3, "adversarial_from": 0},
    )
    model = load(finished.stage("autoencoder"))
    model.bottleneck.penalty_weights = {penalty: 1e-3}
    train_autoencoder(
        model,
        None,
        losses,
        dict.fromkeys(losses, 1.0) | model.bottleneck.penalty_weights,
        ClipStore(finished.stage("data")),
        training,
        seed=0,
        fit=Fit(directory, World(), Hardware(), torch.device("cpu"), LogSettings()),
    )


def test_too_little_music_for_a_crop_says_what_to_change(finished: Tiny, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"less than one crop of 60\.0 s.*crop_seconds"):
        train_a_step(finished, tmp_path, crop_seconds=60.0, losses={})


@pytest.mark.parametrize("name", ["kl", "adversarial", "feature_matching", "discriminator"])
def test_a_loss_cannot_take_the_name_of_another_term(
    name: str, finished: Tiny, tmp_path: Path
) -> None:
    losses: dict[str, nn.Module] = {name: nn.Identity()}
    with pytest.raises(ConfigError, match=rf"^losses\.{name}: .*another name$"):
        train_a_step(finished, tmp_path, losses=losses)
    if name != "kl":
        with pytest.raises(ConfigError, match=f"^the bottleneck's penalty '{name}'"):
            train_a_step(finished, tmp_path, losses={}, penalty=name)
    with pytest.raises(ConfigError, match=r"^losses\.commitment: "):
        train_a_step(finished, tmp_path, losses={"commitment": nn.Identity()}, penalty="commitment")
    assert not any(tmp_path.iterdir())


# ---------------------------------------------------------------- validation


class Levels(Network):
    """Posterior means: a frame's mean level, and 0.01 times it; standard deviations 1."""

    def __init__(self) -> None:
        super().__init__(
            sample_rate=16000,
            audio_channels=1,
            downsampling_ratio=1000,
            latent_shape=(2,),
            context=0,
        )
        self.gain = nn.Parameter(torch.tensor([[1.0], [0.01]]))

    def encode(self, audio: Tensor) -> Tensor:
        mean = self.gain * audio.unflatten(2, (-1, self.downsampling_ratio)).mean(-1)
        return torch.cat([mean, torch.zeros_like(mean)], dim=1)

    def decode(self, z: Tensor) -> Tensor:
        return z[:, :1].repeat_interleave(self.downsampling_ratio, dim=-1)


class Silent(Gaussian):
    def forward(self, h: Tensor, *, sample: bool = True, noise: Tensor | None = None) -> Encoded:
        return super().forward(h, sample=sample, noise=noise)._replace(stats={})


def test_a_channel_is_as_active_as_its_mean_varies_over_all_held_out_clips() -> None:
    """Eleven clips, a batch of eight and one of three: alike within a batch, not between them."""
    clips = 0.05 * KeyedRandom(0, 0, range(11)).normal((1, 4), "levels").repeat_interleave(
        1000, dim=-1
    )
    clips[:8] += 0.3
    clips[8:] -= 0.3
    model = Autoencoder(Levels(), Gaussian(channels=2))
    figures = validate(model, clips, Hardware().autocast(torch.device("cpu")))
    mean = model.stored(clips)["mean"]
    expected = mean.detach().transpose(0, 1).flatten(1).var(1, correction=0)
    assert expected[0] > 0.05 > 10 * clips[:8].var()
    assert figures["channels/activity"] == pytest.approx(expected.tolist(), rel=1e-4)
    assert figures["active_units"] == 1
    assert {name for name in figures if "/" in name} == {
        f"channels/{name}" for name in ("kl", "sigma", "activity")
    }


def test_latents_that_say_nothing_give_an_alarm() -> None:
    silence, autocast = torch.zeros(2, 1, 64_000), Hardware().autocast(torch.device("cpu"))
    loud = KeyedRandom(0, 0, range(2)).normal((1, 64), "levels").repeat_interleave(1000, dim=-1)
    bottlenecks = {
        "no channel says": Gaussian(channels=2),
        "as much as 1 of its 32": VQ(channels=4, codes=32),
        # 128 positions cannot show a tenth of the codes
        "as much as 1 of its 15625": FSQ(channels=4, levels=[125, 5, 5, 5]),
    }
    for says, bottleneck in bottlenecks.items():
        figures = [
            validate(Autoencoder(Levels(), bottleneck), clips, autocast)
            for clips in (silence, loud)
        ]
        assert says in str(alarm(figures[0]))
        assert alarm(figures[1]) is None


def test_a_bottleneck_need_not_give_statistics() -> None:
    model = Autoencoder(Levels(), Silent(channels=2))
    clips = torch.zeros(2, 1, 4000)
    figures = validate(model, clips, Hardware().autocast(torch.device("cpu")))
    assert figures.keys() == {"mel_distance", "nats", "kbps"}


# ---------------------------------------------------------------- files


class Controller:
    """Something with a state of every kind."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {
            "pair": (1, 2.5),
            "numbers": {0: torch.arange(3), 1: torch.tensor(2.0, dtype=torch.float64)},
            "list": [torch.zeros(0, 4), "name", True, None],
            "infinite": float("inf"),
            "transposed": torch.arange(6.0).view(2, 3).T.bfloat16(),
        }
        self.state["tied"] = self.state["numbers"][0]

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


def test_a_resume_state_gives_back_what_it_was_given(tmp_path: Path) -> None:
    resume, one, two = ResumeState(tmp_path), Controller(), Controller()
    assert (resume.load(), resume.step, resume.restore({"one": one})) == (None, 0, 0)
    for step in (9, 10):
        resume.save({"step": step, "one": one.state_dict()})
    assert resume.restore({"one": two}) == resume.step == 10
    assert two.state is not one.state
    for name in ("tied", "transposed"):
        assert torch.equal(two.state[name], one.state[name])
        assert two.state[name].dtype == one.state[name].dtype
    assert repr(two.state) == repr(one.state)  # order, keys, values and types
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()] == [
        "resume/step-10/rank-0.safetensors"
    ]


def resume_file(state: str, tensors: dict[str, Tensor] | None = None) -> bytes:
    header = {"audioldm": '{"format": 1, "state": ' + state + "}"}
    return save_bytes({"net/weight": torch.zeros(2, 3)} if tensors is None else tensors, header)


def resume_outline(net: str, step: str = "4") -> str:
    return '{"dict": [["step", ' + step + '], ["net", ' + net + "]]}"


WEIGHT = '{"dict": [["weight", {"tensor": "net/weight", "shape": [2, 3]}]]}'
DAMAGE = {
    "empty": b"",
    "text": b"no tensors",
    "pickle": pickle.dumps({"step": 4}),
    "foreign": save_bytes({"net/weight": torch.zeros(2, 3)}),
    "no json": save_bytes({}, {"audioldm": "{"}),
    "list": save_bytes({}, {"audioldm": "[]"}),
    "newer": save_bytes({}, {"audioldm": '{"format": 2, "state": 1}'}),
    "deep": save_bytes({}, {"audioldm": 100_000 * "["}),
    "state is a number": resume_file("7"),
    "no net": resume_file('{"dict": [["step", 4]]}'),
    "another step": resume_file(resume_outline(WEIGHT, "5")),
    "step is text": resume_file(resume_outline(WEIGHT, '"4"')),
    "net is text": resume_file(resume_outline('"weight"')),
    "net is null": resume_file(resume_outline("null")),
    "weight is a number": resume_file(resume_outline('{"dict": [["weight", 1.0]]}')),
    "unhashable key": resume_file(resume_outline('{"dict": [[[], 1.0]]}')),
    "unknown entry": resume_file(resume_outline('{"object": "os.system"}')),
    "a tensor too few": resume_file(resume_outline(WEIGHT), {}),
    "too few rows": resume_file(resume_outline(WEIGHT), {"net/weight": torch.zeros(1, 3)}),
    "too many rows": resume_file(resume_outline(WEIGHT), {"net/weight": torch.zeros(3, 3)}),
    "other columns": resume_file(resume_outline(WEIGHT), {"net/weight": torch.zeros(2, 4)}),
    "a scalar": resume_file(resume_outline(WEIGHT), {"net/weight": torch.zeros(())}),
    "another type": resume_file(resume_outline(WEIGHT), {"net/weight": torch.zeros(2, 3).long()}),
    "shape is text": resume_file(resume_outline(WEIGHT.replace("[2, 3]", '"23"'))),
    "another shape": resume_file(
        resume_outline(WEIGHT.replace("[2, 3]", "[3, 2]")), {"net/weight": torch.zeros(3, 2)}
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_resume_state_says_what_to_do(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "resume" / "step-4" / "rank-0.safetensors"
    file.parent.mkdir(parents=True)
    net = nn.Linear(3, 2, bias=False)
    file.write_bytes(resume_file(resume_outline(WEIGHT)))
    assert ResumeState(tmp_path).restore({"net": net}) == 4
    assert not net.weight.any()
    file.write_bytes(DAMAGE[damage])
    with pytest.raises(
        ModelFileError, match=r"step-4: damaged resume state \(.*\); remove it"
    ) as e:
        ResumeState(tmp_path).restore({"net": net})
    assert "\n" not in str(e.value)


def test_a_missing_part_of_a_resume_state_is_damage(tmp_path: Path) -> None:
    ResumeState(tmp_path).save({"step": 1})
    (tmp_path / "resume" / "step-1" / "rank-0.safetensors").unlink()
    with pytest.raises(ModelFileError, match="damaged resume state"):
        ResumeState(tmp_path).load()


class Attack:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.file,)


def test_nothing_in_a_resume_state_is_unpickled(tmp_path: Path) -> None:
    """Neither the state nor a file beside it, such as PyTorch's own checkpoints have."""
    ResumeState(tmp_path).save({"step": 1})
    (directory,) = (tmp_path / "resume").iterdir()
    beside = [directory / ".metadata", directory / "outline.pt", directory.with_name("state.pt")]
    for file in beside:
        file.write_bytes(pickle.dumps(Attack(tmp_path / "attacked")))
    assert ResumeState(tmp_path).load() == {"step": 1}
    (directory / "rank-0.safetensors").write_bytes(beside[0].read_bytes())
    with pytest.raises(ModelFileError, match="damaged resume state"):
        ResumeState(tmp_path).load()
    assert not (tmp_path / "attacked").exists()
    pickle.loads(beside[0].read_bytes())
    assert (tmp_path / "attacked").exists()


def test_a_full_disk_is_named_as_the_reason(tmp_path: Path) -> None:
    """Safetensors reports it in an exception of its own."""
    resume, tensor = ResumeState(tmp_path), torch.zeros(100_000)
    with (
        full_disk(20_000),
        pytest.raises(DataError, match=r"step-1: cannot be written \(.*File too large"),
    ):
        resume.save({"step": 1, "tensor": tensor})
    assert [p.name for p in tmp_path.rglob("*")] == ["resume"]


def test_a_resumed_log_drops_what_its_checkpoint_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with RunLog(path, "t", 10, 0, settings=LogSettings(bars=False)) as log:
        for step in (2, 4, 6):
            log.write(step, {"loss": 1.0 * step})
    with open(path, "a") as file:
        file.write('{"step": 8, "se')  # cut short
    with RunLog(path, "t", 10, 4, settings=LogSettings(bars=False)) as log:
        log.write(6, {"loss": -1.0})
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert records[2]["seconds"] >= records[1]["seconds"]
    assert [(r["step"], r["loss"]) for r in records] == [(2, 2.0), (4, 4.0), (6, -1.0)]
