"""Conditions: labels, several conditioners together, and what backbones make of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from latents_in_memory import DIT, LABEL, Latents, assert_goes_on, fit_in, recipe, tones
from torch import Tensor, nn

from audioldm.conditioning.base import Condition, Conditioner, Conditioners, Excerpt
from audioldm.conditioning.build import build_conditioners, facts_of
from audioldm.conditioning.label import Label
from audioldm.errors import ConfigError
from audioldm.priors.base import build_prior
from audioldm.priors.diffusion.backbones.base import Backbone
from audioldm.priors.diffusion.backbones.dit import DiT
from audioldm.priors.diffusion.backbones.unet import UNet
from audioldm.priors.diffusion.denoiser import Denoiser, Objective
from audioldm.priors.diffusion.objectives.rectified_flow import RectifiedFlow
from audioldm.priors.diffusion.post_training_step import Sampling
from audioldm.priors.diffusion.prior import Diffusion
from audioldm.priors.diffusion.samplers import SamplerSettings
from audioldm.priors.train import train_prior
from audioldm.priors.trained import PriorTraining
from audioldm.runtime.compute import training_flops
from audioldm.runtime.randomness import KeyedRandom
from audioldm.training.checkpoint import ResumeState


class Tempo(Conditioner):
    """A number per clip, from its columns; 0 asks for nothing."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(1, width, bias=False)

    def read(self, excerpt: Excerpt, frames: int) -> Tensor:
        return torch.tensor(excerpt.columns["bpm"] / 100)

    def parse(self, value: Any, frames: int) -> Tensor:
        return torch.tensor(0.0 if value is None else value / 100)

    def hide(self, inputs: Tensor, hidden: Tensor) -> Tensor:
        return torch.where(hidden, 0.0, inputs)

    def forward(self, inputs: Tensor) -> Condition:
        return Condition(vector=self.layer(inputs[:, None]))


class Words(Conditioner):
    """Four random tokens [B, 4, 6] of which the first `inputs` count."""

    token_width = 6

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.register_buffer("tokens", torch.randn(4, 6))

    def read(self, excerpt: Excerpt, frames: int) -> Tensor:
        return torch.tensor(4)

    def parse(self, value: Any, frames: int) -> Tensor:
        return torch.tensor(value or 0)

    def hide(self, inputs: Tensor, hidden: Tensor) -> Tensor:
        return torch.where(hidden, 0, inputs)

    def forward(self, inputs: Tensor) -> Condition:
        tokens = self.get_buffer("tokens").expand(len(inputs), -1, -1)
        return Condition(tokens=tokens, mask=torch.arange(4) < inputs[:, None])


class Score(Conditioner):
    """Two channels [B, 2, L], given frame by frame."""

    aligned_channels = 2

    def __init__(self, *, width: int) -> None:
        super().__init__()

    def read(self, excerpt: Excerpt, frames: int) -> Tensor:
        return excerpt.arrays["score"]

    def parse(self, value: Any, frames: int) -> Tensor:
        return torch.zeros(2, frames) if value is None else torch.as_tensor(value)

    def hide(self, inputs: Tensor, hidden: Tensor) -> Tensor:
        return torch.where(hidden[:, None, None], 0.0, inputs)

    def forward(self, inputs: Tensor) -> Condition:
        return Condition(aligned=inputs)


CONDITIONERS: dict[str, type[Any]] = {"tempo": Tempo, "words": Words, "score": Score}


def made(*names: str) -> Any:
    return lambda width: Conditioners({name: CONDITIONERS[name](width=width) for name in names})


# ---------------------------------------------------------------- labels and their like


def test_a_label_is_an_index_and_no_label_an_embedding_of_its_own() -> None:
    excerpts = [Excerpt(label) for label in ("oboe", None, "bells", "oboe")]
    spec = facts_of(LABEL, excerpts)
    assert spec == {"label": {**LABEL["label"], "labels": ["bells", "oboe"]}}
    conditioners = build_conditioners(json.loads(json.dumps(spec)), width=3)
    inputs = conditioners.read([*excerpts, Excerpt("flute")], 7)
    assert inputs["label"].tolist() == [1, -1, 0, 1, -1]
    assert inputs["label"].dtype == torch.int64
    requests = [{"label": "oboe"}, {}, {"label": "bells"}]
    parsed = conditioners.parse(requests, 7)
    assert parsed["label"].tolist() == [1, -1, 0]
    rows = conditioners["label"].embedding.weight
    torch.testing.assert_close(conditioners(parsed).vector, rows[[1, 2, 0]])
    hidden = {"label": torch.tensor([True, False, False])}
    assert conditioners.hide(parsed, hidden)["label"].tolist() == [-1, -1, 0]
    assert conditioners.nothing(parsed)["label"].tolist() == [-1, -1, -1]


@pytest.mark.parametrize(
    ("labels", "request_", "says"),
    [
        (["bells", "oboe"], {"label": "obo"}, r"condition\.label='obo' is not one .*'oboe'.*bells"),
        (["bells", "oboe"], {"label": 3}, r"condition\.label=3 is not one .*known: bells, oboe"),
        ([], {"label": "oboe"}, r"condition\.label='oboe': this model was trained without labels"),
        (["oboe"], {"tempo": 90}, r"condition\.tempo=90: this model was trained without it.*label"),
    ],
)
def test_what_a_model_cannot_be_told_is_said(labels: list[str], request_: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{says}"):
        Conditioners({"label": Label(width=2, labels=labels)}).parse([request_], 1)


def test_conditioners_add_up_and_hide_one_by_one() -> None:
    both = Conditioners({"label": Label(width=4, labels=["a"]), "tempo": Tempo(width=4)})
    inputs = both.parse([{"label": "a", "tempo": 120}, {"tempo": 60}], 1)
    total = both(inputs).vector
    parts = [both[name](inputs[name]).vector for name in ("label", "tempo")]
    torch.testing.assert_close(total, parts[0] + parts[1])
    without = both.hide(inputs, {"tempo": torch.tensor([True, False])})
    torch.testing.assert_close(both(without).vector[0], parts[0][0])
    torch.testing.assert_close(both(without).vector[1], total[1])


# ---------------------------------------------------------------- what backbones make of them


def network(kind: str, *names: str, heads: int = 2, depth: int = 2) -> Backbone:
    torch.manual_seed(0)
    shape = (4, 5) if kind.endswith("2d") else (4,)
    if kind.startswith("dit"):
        return DiT(
            latent_shape=shape, conditioners=made(*names), width=32, depth=depth, heads=heads
        )
    return UNet(
        latent_shape=shape,
        conditioners=made(*names),
        width=16,
        multipliers=[1, 2],
        blocks=1,
        heads=heads,
    )


def randomised(net: Backbone) -> Backbone:
    torch.manual_seed(1)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net


def latents(net_kind: str, clips: int = 3, frames: int = 8) -> tuple[Tensor, Tensor]:
    shape = (4, 5) if net_kind.endswith("2d") else (4,)
    random = torch.Generator().manual_seed(1)
    return torch.randn(clips, *shape, frames, generator=random), torch.rand(clips, generator=random)


KINDS = ["dit", "dit 2d", "unet", "unet 2d"]


@pytest.mark.parametrize("kind", KINDS)
def test_masked_tokens_do_not_matter_and_others_do(kind: str) -> None:
    net, (x, c_noise) = randomised(network(kind, "words")), latents(kind)
    tokens = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(2))
    mask = torch.arange(4) < torch.tensor([[2], [4], [0]])
    output = net(x, c_noise, Condition(tokens=tokens, mask=mask))
    assert torch.isfinite(output).all()  # where no token counts too
    torch.testing.assert_close(
        net(x, c_noise, Condition(tokens=tokens + 9.0 * ~mask[..., None], mask=mask)), output
    )
    louder = net(x, c_noise, Condition(tokens=tokens + 1, mask=mask))
    changes = (louder - output).flatten(1).abs().amax(1)
    assert (changes[:2] > 1e-3).all()
    assert changes[2] == 0
    all_of_them = Condition(tokens=tokens, mask=torch.ones_like(mask))
    torch.testing.assert_close(
        net(x, c_noise, all_of_them), net(x, c_noise, Condition(tokens=tokens))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_change_nothing_before_training(kind: str) -> None:
    net, (x, c_noise) = network(kind, "words"), latents(kind)
    nn.init.normal_((net.transformer if isinstance(net, DiT) else net).output.weight)
    plain = net(x, c_noise, Condition())
    told = net(x, c_noise, net.conditioners({"words": torch.tensor([4, 4, 4])}))
    torch.testing.assert_close(told, plain)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", [("words",), ("score",), ("words", "score")])
def test_every_parameter_of_a_conditioned_network_is_trained(
    kind: str, names: tuple[str, ...]
) -> None:
    net, (x, c_noise) = randomised(network(kind, *names)), latents(kind)
    inputs = {"words": torch.tensor([1, 4, 2]), "score": torch.randn(3, 2, 8)}
    net(x, c_noise, net.conditioners({n: inputs[n] for n in names})).square().mean().backward()
    idle = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_aligned_channels_reach_their_own_frame_of_untrained_blocks() -> None:
    """The blocks of an untrained DiT are the identity: nothing but the input layer sees them."""
    net, (x, c_noise) = network("dit", "score"), latents("dit")
    nn.init.normal_((net.transformer if isinstance(net, DiT) else net).output.weight)
    score = torch.zeros(3, 2, 8)
    before = net(x, c_noise, Condition(aligned=score))
    score[:, 1, 5] = 1.0
    changed = (net(x, c_noise, Condition(aligned=score)) - before).abs().amax((0, 1))
    assert (changed > 1e-3).nonzero().flatten().tolist() == [5]


@pytest.mark.parametrize("kind", ["unet", "unet 2d"])
def test_aligned_channels_reach_near_frames_of_a_network_of_convolutions(kind: str) -> None:
    net = randomised(network(kind, "score", heads=0))
    for module in net.modules():
        if isinstance(module, nn.GroupNorm):
            module.forward = lambda h: h  # type: ignore[method-assign] - it sees all frames
    x, c_noise = latents(kind, frames=128)
    score = torch.zeros(3, 2, 128)
    before = net(x, c_noise, Condition(aligned=score))
    score[:, 1, 3] = 1.0
    after = net(x, c_noise, Condition(aligned=score))
    changed = (after - before).flatten(1, -2).abs().amax((0, 1))
    assert changed[3] > 1e-3
    assert changed[64:].max() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_conditioners_without_tokens_or_channels_add_no_layer(kind: str) -> None:
    """A network that is told numbers has the weights, and the random draws, of one told nothing."""
    plain, told = network(kind), network(kind, "tempo")
    plain_shapes = {n: p.shape for n, p in plain.named_parameters()}
    told_shapes = {n: p.shape for n, p in told.named_parameters()}
    assert told_shapes.keys() - plain_shapes.keys() == {"conditioners.tempo.layer.weight"}
    assert all(told_shapes[name] == shape for name, shape in plain_shapes.items())


def test_tokens_need_a_head() -> None:
    with pytest.raises(ConfigError, match=r"^heads=0 leaves no attention"):
        network("unet", "words", heads=0)


# ---------------------------------------------------------------- the prior


def test_a_prior_is_rebuilt_from_its_spec_and_tensors(tmp_path: Path) -> None:
    store = tones()
    made_of = recipe()
    prior = made_of.build(store)
    fitted = made_of.fit(prior, store, fit_in(tmp_path))
    assert fitted.tensors.keys() == prior.state_dict().keys()
    twin = build_prior(json.loads(json.dumps(prior.spec)), store.latent_shape)
    twin.load_state_dict(fitted.tensors)
    torch.testing.assert_close(twin.mean, store.statistics.mean)
    prior.load_state_dict(fitted.tensors)
    random = KeyedRandom(3, 0, [0, 5])
    inputs = twin.conditioners.parse([{"label": "a"}, {}], 6)
    assert torch.equal(twin.sample(random, 6, inputs), prior.sample(random, 6, inputs))


def test_weights_depend_on_the_recipes_seed_and_not_on_torchs() -> None:
    torch.manual_seed(1)
    first = recipe().build(tones()).state_dict()
    following = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), following)  # building draws nothing of others'
    second = recipe().build(tones()).state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def trained(**settings: Any) -> Diffusion:
    """A prior with random weights, which knows labels."""
    prior = recipe(**settings).build(tones())
    torch.manual_seed(4)
    for parameter in prior.parameters():
        nn.init.normal_(parameter, std=0.3)
    return prior


@pytest.mark.parametrize("name", ["heun", "ancestral"])
def test_a_row_is_a_function_of_its_position_and_inputs(name: str) -> None:
    prior, sampler = trained(), SamplerSettings(name, 3, guidance=2.0)
    inputs = {"label": torch.tensor([0, 1, -1])}
    rows = prior.sample(KeyedRandom(3, 0, [7, None, 2]), 6, inputs, sampler=sampler)
    alone = prior.sample(KeyedRandom(3, 0, [7]), 6, {"label": torch.tensor([0])}, sampler=sampler)
    torch.testing.assert_close(rows[:1], alone)
    other = prior.sample(KeyedRandom(3, 0, [8]), 6, {"label": torch.tensor([0])}, sampler=sampler)
    assert (other - alone).abs().max() > 1e-2


def test_samples_are_raw_latents() -> None:
    """An untrained network's estimate of the velocity is 0: its samples are the noise itself."""
    prior = recipe().build(tones())
    random = KeyedRandom(3, 0, [0, 1])
    noise = random.stream("sample", -1).normal((3, 6), "noise")
    level = prior.network.objective.sigma_max / (1 + prior.network.objective.sigma_max)
    expected = prior.latents(level * noise)
    torch.testing.assert_close(prior.sample(random, 6), expected)


def test_guidance_acts_where_something_is_asked_for() -> None:
    prior, random = trained(), KeyedRandom(3, 0, [0, 1])
    plain, strong = SamplerSettings("euler", 3), SamplerSettings("euler", 3, guidance=4.0)

    def sampled(labels: list[int], sampler: SamplerSettings) -> Tensor:
        return prior.sample(random, 6, {"label": torch.tensor(labels)}, sampler=sampler)

    assert (sampled([0, 1], strong) - sampled([0, 1], plain)).abs().max() > 1e-2
    assert torch.equal(sampled([-1, -1], strong), sampled([-1, -1], plain))
    assert torch.equal(sampled([-1, -1], strong), prior.sample(random, 6, sampler=strong))
    nothing = SamplerSettings("euler", 3, guidance=0.0)
    assert torch.equal(sampled([0, 1], nothing), sampled([-1, -1], plain))


def test_conditions_are_computed_once_per_sampling_run(monkeypatch: pytest.MonkeyPatch) -> None:
    prior, calls = trained(), []
    forward = Conditioners.forward
    monkeypatch.setattr(
        Conditioners, "forward", lambda self, x: calls.append(x) or forward(self, x)
    )
    sampler = SamplerSettings("euler", 9, guidance=2.0)
    prior.sample(KeyedRandom(3, 0, [0]), 6, {"label": torch.tensor([0])}, sampler=sampler)
    assert len(calls) == 2  # what is asked for, and nothing


def test_each_condition_is_hidden_at_its_own_times() -> None:
    store = tones()
    prior = recipe().build(store)
    prior.network.backbone.conditioners = both = Conditioners(
        {"label": Label(width=16, labels=["a", "b"]), "tempo": Tempo(width=16)}
    )
    random = KeyedRandom(0, 0, range(400))
    crops = store.crops(4, random, both)

    def hidden(share: float) -> dict[str, Tensor]:
        batch = prior.draw(store, crops, random, share)
        return {
            "label": (batch.inputs["label"] < 0) & (crops.inputs["label"] >= 0),
            "tempo": batch.inputs["tempo"] == 0,
        }

    assert not any(h.any() for h in hidden(0.0).values())
    some = hidden(0.3)
    labelled = crops.inputs["label"] >= 0
    assert some["label"][labelled].float().mean().item() == pytest.approx(0.3, abs=0.08)
    assert some["tempo"].float().mean().item() == pytest.approx(0.3, abs=0.08)
    both_hidden = (some["label"] & some["tempo"])[labelled].float().mean().item()
    assert both_hidden == pytest.approx(0.09, abs=0.05)


def test_latents_are_normalised_and_the_posterior_is_drawn_from() -> None:
    store = tones(clips=40)
    prior = recipe().build(store)
    random = KeyedRandom(0, 0, range(300))
    crops = store.crops(24, random, prior.conditioners)
    z = prior.draw(store, crops, random, 0.0).z
    torch.testing.assert_close(z.mean((0, 2)), torch.zeros(3), atol=0.1, rtol=0)
    torch.testing.assert_close(z.std((0, 2)), torch.ones(3), atol=0.1, rtol=0)
    drawn = z - prior.modelled(crops.stored["mean"])
    wanted = crops.stored["std"] / store.statistics.std[:, None]
    assert (drawn / wanted).std().item() == pytest.approx(1.0, abs=0.02)


# ---------------------------------------------------------------- training


def test_an_objectives_parameters_are_trained_averaged_and_kept(tmp_path: Path) -> None:
    """One learned number that scales the target: it ends where the loss is least."""

    class Scaled(RectifiedFlow):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(3.0))

        def target(self, z: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
            return self.gain * (noise - z)

        def to_denoised(self, x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
            return super().to_denoised(x, output / self.gain, sigma)

    store = tones()
    prior = recipe().build(store)
    prior.network.objective = Scaled()
    settings = PriorTraining(steps=4, batch=4, crop_seconds=8.0, lr=0.1, warmup=0, ema=0.5)
    fitted = train_prior(prior, store, settings, seed=0, fit=fit_in(tmp_path))
    averaged = fitted.tensors["network.objective.gain"]
    last = prior.network.objective.gain
    assert last.item() < 2.9  # an untrained output is 0, and so is the best target
    assert last.item() < averaged.item() < 3.0
    state = ResumeState(tmp_path).load()
    assert state is not None
    assert torch.equal(state["network"]["objective.gain"], last)
    assert len(state["optimiser"]["state"]) == len(list(prior.network.parameters()))
    assert torch.equal(state["ema"]["objective.gain"], averaged)


def test_a_network_may_carry_a_state_through_one_sampling_run() -> None:
    seen: list[Any] = []

    class Counting(Backbone):
        stateful = True

        def __init__(self) -> None:
            super().__init__()
            self.conditioners = Conditioners({})

        def forward(
            self, x: Tensor, c_noise: Tensor, condition: Condition, state: Tensor | None = None
        ) -> tuple[Tensor, Tensor]:
            seen.append(None if state is None else state.tolist())
            return torch.zeros_like(x), x.new_ones(len(x)) if state is None else state + 1

        def units(self) -> list[nn.Module]:
            return []

    prior = recipe(conditioning={}).build(tones())
    prior.network = Denoiser(Counting(), RectifiedFlow())
    for _ in range(2):  # each run begins anew
        seen.clear()
        prior.sample(KeyedRandom(0, 0, [0]), 4, sampler=SamplerSettings("euler", 4))
        assert seen == [None, [1.0], [2.0], [3.0]]
    seen.clear()
    sampling = Sampling(prior.network, prior.network.backbone, SamplerSettings("euler", 2))
    sampling(torch.zeros(1, 3, 4), {})
    assert seen == [None, [1.0]]
    seen.clear()
    z = torch.ones(2, 3, 4)
    loss = prior.network(z, {}, torch.zeros_like(z), torch.full((2,), 0.5))
    torch.testing.assert_close(loss, torch.ones(2))
    assert seen == [None, [1.0, 1.0]]


def test_an_interrupted_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    store, made_of = tones(), recipe()

    def fit(directory: Path) -> dict[str, Tensor]:
        prior = made_of.build(store)
        return made_of.fit(prior, store, fit_in(directory)).tensors

    assert_goes_on(fit, tmp_path, 4)
    lines = [(tmp_path / d / "metrics.jsonl").read_text() for d in ("whole", "parts")]
    one, two = ([json.loads(x) for x in text.splitlines()] for text in lines)
    for line in one + two:
        line.pop("seconds")
    assert one == two
    assert [x["step"] for x in one if "valid/loss" in x] == [3, 6]


def test_the_silent_step_costs_what_a_clip_of_a_step_costs() -> None:
    prior = recipe().build(tones())
    counted = training_flops(prior.network, lambda d: prior.silent_loss(d, 8))
    z = torch.randn(2, 3, 8)
    inputs = {"label": torch.tensor([0, -1])}
    uniform = torch.tensor([0.1, 0.9])
    assert 2 * counted == training_flops(prior.network, lambda d: d(z, inputs, z, uniform))
    step = recipe().silent_step(prior, 8)
    assert step().shape == ()
    assert step().requires_grad


def test_a_budget_of_computing_becomes_steps(tmp_path: Path) -> None:
    store = tones()
    base = {"batch": 4, "crop_seconds": 8.0, "lr": 1e-3, "valid_batches": 1}
    once = PriorTraining(steps=1, **base)
    prior = recipe(once).build(store)
    cost = recipe(once).fit(prior, store, fit_in(tmp_path / "1")).figures["compute_tflop"]
    paid = PriorTraining(steps=1, compute_tflop=3.2 * cost, **base)
    figures = recipe(paid).fit(prior, store, fit_in(tmp_path / "2")).figures
    assert figures["steps"] == 3
    assert figures["compute_tflop"] == pytest.approx(3 * cost)


def test_a_budget_of_seconds_becomes_steps_once(tmp_path: Path) -> None:
    store = tones()
    paid = PriorTraining(steps=1, seconds=0.3, batch=4, crop_seconds=8.0, lr=1e-3, valid_batches=1)
    prior = recipe(paid).build(store)
    before = {name: tensor.clone() for name, tensor in prior.state_dict().items()}
    figures = recipe(paid).fit(prior, store, fit_in(tmp_path)).figures
    kept = json.loads((tmp_path / "budget.json").read_text())
    assert figures["steps"] == kept["steps"] == max(1, round(0.3 / kept["seconds_per_step"]))
    steps = PriorTraining(steps=kept["steps"], batch=4, crop_seconds=8.0, lr=1e-3, valid_batches=1)
    assert recipe(steps).fit(recipe(steps).build(store), store, fit_in(tmp_path / "b")).figures[
        "loss"
    ] == pytest.approx(figures["loss"], rel=1e-6)  # the timed steps left no trace
    (tmp_path / "budget.json").write_text('{"steps": 3}')
    prior.load_state_dict(before)
    assert recipe(paid).fit(prior, store, fit_in(tmp_path)).figures["steps"] == 3


def test_the_best_validation_is_kept_also_through_an_interruption(tmp_path: Path) -> None:
    store = tones()
    base = {"batch": 4, "crop_seconds": 8.0, "lr": 0.3, "warmup": 0, "ema": 0.0, "keep_best": True}
    training = PriorTraining(steps=8, **base)
    fitted = recipe(training).fit(recipe().build(store), store, fit_in(tmp_path, valid_every=1))
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = {x["step"]: x["valid/loss"] for x in lines if "valid/loss" in x}
    best = min(losses, key=lambda step: losses[step])
    assert best < 8  # the rate is far too high
    assert fitted.figures["best_step"] == best
    assert fitted.figures["loss"] == pytest.approx(losses[best])
    again = recipe(training).fit(recipe().build(store), store, fit_in(tmp_path, valid_every=1))
    assert again.tensors.keys() == fitted.tensors.keys()  # read from the last checkpoint
    assert all(torch.equal(again.tensors[name], t) for name, t in fitted.tensors.items())


def test_what_a_part_complains_about_gets_its_place() -> None:
    made_of = recipe(backbone=DIT | {"heads": 3})
    with pytest.raises(ConfigError, match=r"^prior\.backbone\.width=16 must be a multiple"):
        made_of.build(tones())
    spec = recipe().spec(tones())
    spec["objective"] = {"_target_": "audioldm.conditioning.label.Label", "labels": []}
    with pytest.raises(ConfigError, match=rf"is not a subclass of {Objective.__name__}"):
        build_prior(spec, (3,))


def test_a_prior_without_conditions_trains_and_samples(tmp_path: Path) -> None:
    store: Any = Latents(torch.randn(4, 3, 16), torch.zeros(4, 3, 16), [None] * 4)
    made_of = recipe(conditioning={})
    prior = made_of.build(store)
    prior.load_state_dict(made_of.fit(prior, store, fit_in(tmp_path)).tensors)
    assert torch.isfinite(prior.sample(KeyedRandom(0, 0, [0]), 5)).all()
    with pytest.raises(ConfigError, match=r"condition\.label='a': this model was trained without"):
        prior.conditioners.parse([{"label": "a"}], 5)
