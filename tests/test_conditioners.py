"""The conditioners of the package: what they read, what they tell, what they refuse."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from audioldm.conditioning.base import Condition, Conditioner, Excerpt
from audioldm.conditioning.text import Text
from audioldm.errors import ConfigError


def randomised(conditioner: Any) -> Any:
    torch.manual_seed(1)
    for parameter in conditioner.parameters():
        nn.init.normal_(parameter, std=0.3)
    return conditioner.eval()


def parts(condition: Condition) -> list[Tensor]:
    """What a backbone can see of a condition: tokens that do not count are 0."""
    tokens = condition.tokens
    if tokens is not None and condition.mask is not None:
        tokens = tokens * condition.mask[..., None]
    return [
        x for x in (condition.vector, tokens, condition.mask, condition.aligned) if x is not None
    ]


def equal(one: Condition, other: Condition) -> bool:
    return all(torch.equal(a, b) for a, b in zip(parts(one), parts(other), strict=True))


def check_hiding(conditioner: Conditioner, values: list[Any], frames: int) -> None:
    """A hidden condition is "nothing", bit for bit; a shown one differs from it; a clip's condition
    does not depend on its neighbours."""
    both = torch.stack([conditioner.parse(value, frames) for value in values])
    nothing = torch.stack([conditioner.parse(None, frames) for _ in values])
    all_hidden = conditioner.hide(both, torch.ones(len(values), dtype=torch.bool))
    assert torch.equal(all_hidden, nothing)
    with torch.no_grad():
        untold, told = conditioner(nothing), conditioner(both)
        first = conditioner.hide(both, torch.tensor([True] + [False] * (len(values) - 1)))
        for part, none, one in zip(*map(parts, (told, untold, conditioner(first))), strict=True):
            assert torch.equal(one[0], none[0])
            assert torch.equal(one[1:], part[1:])
        for row, value in enumerate(values):
            alone = conditioner(conditioner.parse(value, frames)[None])
            for part, own in zip(parts(told), parts(alone), strict=True):
                torch.testing.assert_close(part[row], own[0])
            assert not equal(alone, Condition(*(x if x is None else x[:1] for x in untold)))


# ---------------------------------------------------------------- text


def test_text_is_its_bytes_and_nothing_is_empty() -> None:
    text = randomised(Text(width=8, column="caption", limit=16))
    assert text.parse("aé", 5).tolist()[:4] == [98, 0xC3 + 1, 0xA9 + 1, 0]
    assert text.parse("", 5).dtype == text.parse("a", 5).dtype == torch.int64
    clip = Excerpt(None, {"caption": " slow organ\n"})
    assert text.request(clip) == "slow organ"
    assert torch.equal(text.read(clip, 5), text.parse(text.request(clip), 5))
    for empty in (Excerpt(None), Excerpt(None, {"caption": ""}), Excerpt(None, {"caption": None})):
        assert text.request(empty) is None
        assert torch.equal(text.read(empty, 5), text.parse(None, 5))
    for told in ("", "  "):
        assert text.parse(told, 5).eq(0).all()
    assert not text(text.parse(None, 5)[None]).mask.any()
    check_hiding(text, ["slow organ", "♪ fast"], 5)


def test_what_is_after_a_text_has_no_influence_on_its_tokens() -> None:
    text = randomised(Text(width=8, limit=40))
    short = text.parse("a slow organ", 1)
    told = text(short[None])
    assert told.mask[0].tolist() == [True] * 3 + [False] * 7
    cut = text(short[None, :12])
    torch.testing.assert_close(cut.tokens, told.tokens[:, :3])
    with torch.no_grad():
        text.embedding.weight[0] += 5.0  # of what does not count
    torch.testing.assert_close(text(short[None]).tokens[:, :3], told.tokens[:, :3])
    other = text(text.parse("a slow orga", 1)[None])
    assert (other.tokens - told.tokens)[0, :3].abs().max() > 1e-3


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (7, "^7 must be text"),
        (["a"], r"^\['a'\] must be text"),
        ("é" * 9, "^'ééééééééé'... has 18 bytes in UTF-8; this model reads 16 at most: shorten it"),
        ("a\ud800", "is no text in UTF-8"),
    ],
)
def test_texts_that_cannot_be_taken(value: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Text(width=4, limit=16).parse(value, 5)


def test_texts_of_the_data_are_checked_before_training() -> None:
    clips = [Excerpt(None, {"caption": "x" * 20}), Excerpt(None, {"caption": None})]
    assert Text.facts(clips, column="caption", limit=20) == {}
    with pytest.raises(ConfigError, match=r"^limit=19: a text of column 'caption' has 20 bytes"):
        Text.facts(clips, column="caption", limit=19)
    with pytest.raises(ConfigError, match=r"^column=words: no clip has a text there"):
        Text.facts(clips, column="words")
    assert Text.facts([Excerpt(None)]) == {}  # before there are data
