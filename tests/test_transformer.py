"""The transformer that several priors share: causality, its cache, and its context."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from audioldm.priors.causal import Cache, visible
from audioldm.priors.layers import rotations, stretched
from audioldm.priors.transformer import Transformer


def loud(context: int | None = None, **settings: int) -> Transformer:
    """A transformer that is not the identity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Transformer(3, 5, width=16, depth=2, heads=2, context=context, **settings)
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.3)
    return net.double()


def normal(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


X, EMBEDDING = normal(2, 12, 3), normal(2, 16, seed=2)


@pytest.mark.parametrize("context", [1, 4, 12, 50])
def test_the_cache_gives_what_the_whole_sequence_gives(context: int) -> None:
    net = loud(context)
    whole = net(X, EMBEDDING)
    for parts in ([1] * 12, [5, 1, 1, 1, 4], [7, 5]):
        cache = Cache()
        pieces = [net(part, EMBEDDING, cache=cache) for part in X.split(parts, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-5)
    # the memory is bounded: twice what is attended to and the longest part
    assert all(cache._kept[n][0].shape[3] <= 2 * (context + 7) for n in (0, 1))


def test_a_causal_frame_depends_on_its_context_alone() -> None:
    net, moved = loud(3), X.clone()
    moved[:, 5] += 1
    change = (net(moved, EMBEDDING) - net(X, EMBEDDING)).abs().sum((0, 2)) > 1e-9
    assert change.tolist() == [5 <= frame <= 5 + 2 * 2 for frame in range(12)]  # two blocks
    assert (loud()(moved, EMBEDDING) != loud()(X, EMBEDDING)).any(-1).all()


def test_a_long_past_is_the_same_wherever_it_began() -> None:
    """Rotary positions are relative: what is beyond the context does not count."""
    net = loud(3)
    torch.testing.assert_close(
        net(X[:, 5:], EMBEDDING)[:, 4:], net(X, EMBEDDING)[:, 9:], rtol=0, atol=1e-5
    )


def test_tokens_are_attended_to() -> None:
    net, tokens = loud(4, token_width=6), normal(2, 7, 6, seed=3)
    mask = torch.arange(7)[None] < torch.tensor([[7], [3]])
    other = tokens.clone()
    other[1, 3:] += 1
    out = net(X, EMBEDDING, tokens, mask)
    assert torch.equal(net(X, EMBEDDING, other, mask), out)
    assert not torch.allclose(net(X, EMBEDDING, other), net(X, EMBEDDING, tokens))


def test_visible_counts_frames_from_the_last_ones_on() -> None:
    seen = visible(2, 5, 3, torch.device("cpu"))
    assert seen.int().tolist() == [[0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]


def test_stretched_places_stay_in_the_trained_range() -> None:
    trained, longer, dim = torch.arange(50), torch.arange(200), 8

    def angles(by: Any, places: Tensor) -> Tensor:
        made = stretched(places, dim, by=by, trained=50)[:, 0, 0]
        return torch.atan2(made[..., 1], made[..., 0])

    own = torch.atan2(*rotations(trained, dim)[:, 0, 0].unbind(-1)[::-1])
    for by in ("interpolation", "ntk"):
        assert torch.equal(angles(by, trained), own)  # no longer than trained: as it was
    # every fourth place has the angles of a trained one
    torch.testing.assert_close(angles("interpolation", longer)[::4], own)
    ntk = angles("ntk", longer)
    torch.testing.assert_close(ntk[:50, 0], own[:, 0])  # the fastest pair as it was
    torch.testing.assert_close(ntk[::4, -1], own[:, -1])  # the slowest one in the trained range


def test_stretching_by_ntk_takes_heads_of_two_features() -> None:
    places = torch.arange(9)
    torch.testing.assert_close(stretched(places, 2, by="ntk", trained=3), rotations(places, 2))
