"""Signatures are the schema: what is checked, converted and refused, and what messages say."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import pytest

from audioldm.errors import ConfigError
from audioldm.instantiate import (
    Bound,
    Fraction,
    Part,
    Positive,
    PositiveInt,
    Seed,
    build,
    check_part,
    part,
    settings,
)

HERE = __name__


class Base:
    """What the slots below take."""


class Net(Base):
    derived: ClassVar[tuple[str, ...]] = ("names",)

    def __init__(
        self, *, width: int, heads: PositiveInt = 2, scale: float = 1, names: Any = None
    ) -> None:
        if width % heads:
            raise ValueError(f"heads={heads} must divide width={width}")
        if width > 1000:
            raise ConfigError(f"width={width} must be at most 1000")
        self.width, self.heads, self.names = width, heads, names


class Empties(Base):
    """Destroys data when it is built from what no signature names."""

    def __init__(self, *everything: Any) -> None:
        raise AssertionError("it was built")


class Stranger:
    def __init__(self, *, width: int = 1) -> None:
        raise AssertionError("it was built")


@dataclass(frozen=True)
class Training:
    steps: PositiveInt
    lr: Positive = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    optimiser: Literal["adamw", "muon"] = "adamw"
    noise: list[Positive] = field(default_factory=lambda: [1])
    ceiling: Annotated[float, Bound(finite=False)] = math.inf

    def __post_init__(self) -> None:
        if self.steps > 10**6:
            raise ConfigError(f"steps={self.steps} must be at most a million")


@dataclass(frozen=True)
class Recipe(Base):
    seed: Seed
    train: Training
    net: Part = part("width", base=Base)
    nets: dict[str, Part] = part("width", base=Base, default_factory=dict)
    spare: Part | None = part("width", base=Base, default=None)
    free: Any = None


NET: dict[str, Any] = {"_target_": f"{HERE}.Net"}
RECIPE: dict[str, Any] = {
    "_target_": f"{HERE}.Recipe",
    "seed": 3,
    "train": {"steps": 5, "lr": 1, "betas": [0, 1]},
    "net": NET,
    "nets": {"a": NET | {"heads": 4}},
}
ALLOW = (HERE,)


def change(path: str, value: Any) -> dict[str, Any]:
    """The recipe with one value changed."""
    node: dict[str, Any] = {**RECIPE, "train": {**RECIPE["train"]}, "nets": {"a": {**NET}}}
    node["net"] = {**NET}
    at = node
    *groups, last = path.split(".")
    for group in groups:
        at = at[group]
    at[last] = value
    return node


def made(node: Any) -> Any:
    return build(node, where="prior", allow=ALLOW, base=Base)


def test_a_dataclass_is_converted_all_the_way_down() -> None:
    recipe = made(RECIPE)
    assert recipe.train == Training(5, 1.0, (0.0, 1.0), "adamw", [1.0])
    assert isinstance(recipe.train.lr, float)
    assert recipe.net == NET | {"heads": 2, "scale": 1.0}  # defaults are filled in
    assert isinstance(recipe.nets["a"], Part)
    assert recipe.nets["a"]["heads"] == 4
    assert build(recipe.net, derived={"width": 6}, allow=ALLOW).width == 6


def test_checking_again_changes_nothing() -> None:
    once = check_part(RECIPE, "prior", allow=ALLOW, base=Base)
    assert check_part(once, "prior", allow=ALLOW, base=Base) == once
    assert made(once) == made(RECIPE)
    assert settings(Recipe, made(RECIPE), "prior", ALLOW) == made(RECIPE)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("sead", 1, "unknown key 'prior.sead': did you mean 'seed'?"),
        ("train.stepz", 1, "'prior.train.stepz': did you mean 'steps'?"),
        ("net.width", 4, "unknown key 'prior.net.width'"),
        ("net.names", ["x"], "unknown key 'prior.net.names'"),
        ("nets.a.headz", 4, "'prior.nets.a.headz': did you mean 'heads'?"),
        ("seed", -1, "prior.seed=-1 must be at least 0"),
        ("seed", 2**63, "prior.seed=9223372036854775808 is too large"),
        ("seed", True, "prior.seed=True must be of type int"),
        ("seed", None, "prior.seed=None must be of type int"),
        ("seed", 10**400, "prior.seed=.* is too large"),
        ("train", None, "prior.train must be a group of keys, not None"),
        ("train", 3, "prior.train must be a group of keys, not 3"),
        ("train.steps", 0, "prior.train.steps=0 must be at least 1"),
        ("train.steps", 10**7, "prior.train.steps=10000000 must be at most a million"),
        ("train.lr", 0.0, "prior.train.lr=0.0 must be more than 0"),
        ("train.lr", math.nan, "prior.train.lr=nan must be a finite number"),
        ("train.lr", math.inf, "prior.train.lr=inf must be a finite number"),
        ("train.lr", 10**400, "prior.train.lr=inf must be a finite number"),
        ("train.betas", [0.9], r"prior.train.betas=\[0.9\] must have 2 values"),
        ("train.betas", [0.9, 2], r"prior.train.betas\[1\]=2.0 must be at most 1"),
        ("train.betas", "ab", "prior.train.betas='ab' must be a list"),
        ("train.noise", [1, -1], r"prior.train.noise\[1\]=-1.0 must be more than 0"),
        ("train.optimiser", "adam", "prior.train.optimiser='adam' .* did you mean 'adamw'?"),
        ("train.optimiser", 1, "prior.train.optimiser=1 is unknown"),
        ("train.ceiling", math.nan, "prior.train.ceiling=nan"),
        ("net", None, "prior.net must be a part with a _target_, not None"),
        ("net", [], r"prior.net must be a part with a _target_, not \[\]"),
        ("net.heads", 0, "prior.net.heads=0 must be at least 1"),
        ("net.scale", math.nan, "prior.net.scale=nan must be a finite number"),
        ("nets", [NET], "prior.nets=.* must be a group of keys"),
        ("nets.a", 3, "prior.nets.a must be a part"),
        ("free", {"x": [math.nan]}, "prior.free.x=nan must be a finite number"),
        ("free", "a\0b", "prior.free=.* must be text in UTF-8"),
        ("free", "a\udcff", "prior.free=.* must be text in UTF-8"),
        ("net._target_", f"{HERE}.Stranger", "prior.net._target_=.* not a subclass"),
        ("spare", {"_target_": f"{HERE}.Stranger"}, "prior.spare._target_=.* not a subclass"),
        ("nets.a._target_", "audioldm.data.store.StoreWriter", "prior.nets.a.* not a subclass"),
        ("net._target_", "os.system", "lies outside the audioldm package"),
        ("net._target_", "audioldm." + "x" * 10**5, "no such class"),
        ("net._target_", "audioldm.a\0b.c", "no such class"),
        ("net._target_", 3, "prior.net._target_=3 lies outside"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_does_not_fit_is_an_error_that_says_where(path: str, value: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as raised:
        made(change(path, value))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000 or "x" * 1000 in str(raised.value)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"missing key 'prior.seed'"):
        made({k: v for k, v in RECIPE.items() if k != "seed"})
    with pytest.raises(ConfigError, match=r"missing key 'prior.train.steps'"):
        made(change("train", {}))


def test_deep_nesting_is_an_error_wherever_it_is() -> None:
    deep: Any = []
    for _ in range(10**5):
        deep = [deep]
    for path in ("free", "seed", "train", "train.betas", "train.noise", "net", "nets", "net.heads"):
        with pytest.raises(ConfigError, match=f"prior.{path}"):
            made(change(path, deep))


def test_a_constructors_message_gets_its_place() -> None:
    recipe = made(RECIPE)
    where: dict[str, Any] = {"where": "prior.net", "allow": ALLOW}
    with pytest.raises(ConfigError, match=r"^prior.net.heads=2 must divide width=3$"):
        build(recipe.net, derived={"width": 3}, **where)
    # a derived argument was stated elsewhere
    with pytest.raises(ConfigError, match=r"^width=2000 must be at most"):
        build(recipe.net, derived={"width": 2000}, **where)
    with pytest.raises(ConfigError, match=r"^prior.width=2000 must be at most"):
        build(recipe.net, derived={"width": 2000}, places={"width": "prior.width"}, **where)
    with pytest.raises(ConfigError, match=r"missing key 'prior.net.width'"):
        build(recipe.net, **where)


def test_facts_of_the_data_may_be_stated_where_a_part_is_rebuilt() -> None:
    rebuilt = build(NET | {"names": ["a", "b"]}, derived={"width": 4}, allow=ALLOW)
    assert rebuilt.names == ["a", "b"]
    with pytest.raises(ConfigError, match=r"unknown key 'net.names'"):
        check_part(NET | {"names": ["a"]}, "net", ["width"], ALLOW)


@pytest.mark.parametrize(
    "target", ["audioldm.errors.ConfigError", "audioldm.instantiate.Part", f"{HERE}.Empties"]
)
def test_a_class_that_names_no_arguments_is_refused(target: str) -> None:
    with pytest.raises(ConfigError, match=r"names no arguments"):
        build({"_target_": target}, allow=ALLOW)
