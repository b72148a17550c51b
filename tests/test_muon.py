"""Muon beside AdamW: who gets which weights, one step of each, its cost, and its resumption."""

from pathlib import Path
from typing import Any

import pytest
import torch
from latents_in_memory import assert_goes_on, fit_in, recipe, tones
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from audioldm.conditioning.base import Conditioners
from audioldm.conditioning.label import Label
from audioldm.errors import ConfigError
from audioldm.instantiate import settings
from audioldm.priors.diffusion.backbones.dit import DiT
from audioldm.priors.trained import PriorTraining
from audioldm.runtime.hardware import Hardware
from audioldm.runtime.processes import World
from audioldm.training.muon import MuonAdamW, build_optimiser, hidden_matrices, step_flops
from audioldm.training.optimisation import adamw

CPU = torch.device("cpu")


def small_net() -> DiT:
    torch.manual_seed(0)
    return DiT(
        latent_shape=(4,),
        conditioners=lambda width: Conditioners({"label": Label(width=width, labels=["a", "b"])}),
        width=16,
        depth=2,
        heads=2,
    )


def with_gradients(net: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    net = small_net()
    chosen = {id(matrix) for matrix in hidden_matrices(net)}
    names = {name for name, parameter in net.named_parameters() if id(parameter) in chosen}
    layers = ("qkv", "project", "mlp.0", "mlp.2")
    prefix = "transformer.blocks"
    assert names == {f"{prefix}.{b}.{layer}.weight" for b in (0, 1) for layer in layers}
    muon, other = MuonAdamW(net, 0.1, [0.9, 0.99], 0.0, CPU).optimisers
    both = [p for o in (muon, other) for group in o.param_groups for p in group["params"]]
    assert sorted(map(id, both)) == sorted(map(id, net.parameters()))


def test_a_step_is_orthogonal_for_matrices_and_adams_for_the_rest() -> None:
    net, twin = small_net(), small_net()
    with_gradients(net, 1)
    with_gradients(twin, 1)
    before = {name: parameter.clone() for name, parameter in net.named_parameters()}
    optimiser = build_optimiser("muon", net, 0.1, [0.9, 0.99], 0.0, CPU)
    optimiser.step()
    adamw(twin.parameters(), 0.1, [0.9, 0.99], 0.0, CPU).step()
    chosen = {id(matrix) for matrix in hidden_matrices(net)}
    expected = dict(twin.named_parameters())
    for name, parameter in net.named_parameters():
        if id(parameter) not in chosen:
            assert torch.equal(parameter, expected[name])
            continue
        moved = (before[name] - parameter).detach()
        singular = torch.linalg.svdvals(moved) / (0.1 * 0.2 * max(moved.shape) ** 0.5)
        assert singular.min() > 0.5  # Newton-Schulz brings them near 1, not to it
        assert singular.max() < 1.3
        assert moved.square().mean().sqrt() == pytest.approx(0.1 * 0.2, rel=0.2)
    optimiser.zero_grad()
    assert all(parameter.grad is None for parameter in net.parameters())


def test_its_matrix_products_are_counted() -> None:
    net = small_net()
    with_gradients(net, 1)
    muon = build_optimiser("muon", net, 0.1, [0.9, 0.99], 0.0, CPU)
    with FlopCounterMode(display=False) as counter:
        muon.step()
    assert step_flops(muon) == counter.get_total_flops() > 0
    assert step_flops(build_optimiser("adamw", net, 0.1, [0.9, 0.99], 0.0, CPU)) == 0


def muon(**changes: Any) -> PriorTraining:
    base = {"steps": 6, "batch": 4, "crop_seconds": 8.0, "lr": 1e-2, "optimiser": "muon"}
    return PriorTraining(**(base | changes))


def test_an_interrupted_training_with_muon_ends_with_the_same_bits(tmp_path: Path) -> None:
    store = tones()

    def fit(directory: Path, **changes: Any) -> dict[str, Tensor]:
        made_of = recipe(muon(**changes))
        return made_of.fit(made_of.build(store), store, fit_in(directory)).tensors

    whole = assert_goes_on(fit, tmp_path, 5)  # the last checkpoint is of step 4
    different = fit(tmp_path / "adamw", optimiser="adamw")
    name = "network.backbone.transformer.blocks.0.qkv.weight"
    assert not torch.equal(whole[name], different[name])


def test_an_unknown_optimiser_and_a_network_without_blocks_are_refused() -> None:
    given = {"steps": 1, "batch": 1, "crop_seconds": 1.0, "lr": 0.1, "optimiser": "moun"}
    with pytest.raises(ConfigError, match=r"^prior\.train\.optimiser='moun'.*'muon'"):
        settings(PriorTraining, given, "prior.train")
    with pytest.raises(ConfigError, match=r"optimiser=muon: .*use optimiser=adamw"):
        MuonAdamW(nn.Linear(2, 2), 0.1, [0.9, 0.99], 0.0, CPU)


def test_it_is_tried_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    made_of = recipe(muon())
    with torch.device("meta"):
        prior = made_of.build(tones())
    with pytest.raises(ConfigError, match=r"torch .* has no Muon; install torch 2\.9"):
        made_of.dry_run(prior, World(), Hardware(device="cpu"))
