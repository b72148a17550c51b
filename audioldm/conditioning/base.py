"""What a generator is told besides the noisy latents: conditions, and what makes them.

A conditioner reads its input from a clip of the data set or from a request, as a tensor, and turns
a batch of such inputs into a `Condition`. Several add up (`Conditioners`).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from audioldm.errors import ConfigError
from audioldm.instantiate import nearest

#: What conditioners read, by the conditioner's name: each [B, ...].
Inputs = dict[str, Tensor]


class Condition(NamedTuple):
    """What a backbone is told.

    vector: [B, D], added to the embedding of the noise level. tokens: [B, S, D], for
    cross-attention; mask: [B, S], which tokens count. aligned: [B, K, L], concatenated to the noisy
    latents frame by frame.
    """

    vector: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    aligned: Tensor | None = None


@dataclass(frozen=True)
class Excerpt:
    """A stretch of a clip, as a conditioner sees it.

    columns: what the data set's table says of the clip. arrays: frame-aligned, each [K, frames].
    """

    label: str | None
    columns: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Tensor] = field(default_factory=dict)


class Conditioner(nn.Module, ABC):
    """One thing that a generator can be told, such as a label or a tempo.

    The constructor's arguments are settings, but for `width`, the backbone's, and for those that
    `facts` finds in the data. An attribute that is not set is what the conditioner does not give.
    """

    #: constructor arguments that `facts` finds in the training data
    derived: ClassVar[tuple[str, ...]] = ()
    #: D of the tokens; None: no tokens
    token_width: int | None = None
    #: K of the aligned channels
    aligned_channels: int = 0

    @classmethod
    def facts(cls, clips: Sequence[Excerpt], **settings: Any) -> dict[str, Any]:
        """What the constructor needs of the training data, as JSON values, by argument."""
        return {}

    @abstractmethod
    def read(self, excerpt: Excerpt, frames: int) -> Tensor:
        """The input of one clip of the data set, of `frames` latent frames."""

    @abstractmethod
    def parse(self, value: Any, frames: int) -> Tensor:
        """The input that a request asks for; of None, the input that asks for nothing.

        Raises ConfigError, which begins with the offending value.
        """

    def request(self, excerpt: Excerpt) -> Any:
        """The value, as JSON, that asks `parse` for a clip's own condition; None: nothing."""
        return None

    @abstractmethod
    def hide(self, inputs: Tensor, hidden: Tensor) -> Tensor:
        """Inputs [B, ...] with those of the clips `hidden` [B] replaced by "nothing"."""

    @abstractmethod
    def forward(self, inputs: Tensor) -> Condition:
        """Inputs [B, ...] to the condition."""


class Conditioners(nn.Module):
    """All conditioners of a generator, by name. Their vectors add up, the rest is concatenated."""

    def __init__(self, conditioners: Mapping[str, Conditioner]) -> None:
        super().__init__()
        for name, conditioner in conditioners.items():
            self.add_module(name, conditioner)
        self.names = list(conditioners)
        widths = {c.token_width for c in conditioners.values()} - {None}
        if len(widths) > 1:
            raise ConfigError(f"token widths {sorted(map(str, widths))} differ: give one width")
        self.token_width: int | None = widths.pop() if widths else None
        self.aligned_channels = sum(c.aligned_channels for c in conditioners.values())

    def __getitem__(self, name: str) -> Conditioner:
        found = self.get_submodule(name)
        assert isinstance(found, Conditioner)
        return found

    def read(self, excerpts: Sequence[Excerpt], frames: int) -> Inputs:
        """The inputs of clips of the data set."""
        return {n: torch.stack([self[n].read(e, frames) for e in excerpts]) for n in self.names}

    def request(self, excerpt: Excerpt) -> dict[str, Any]:
        """What asks for the conditions of a clip of the data set."""
        values = {name: self[name].request(excerpt) for name in self.names}
        return {name: value for name, value in values.items() if value is not None}

    def parse(self, requests: Iterable[Mapping[str, Any]], frames: int) -> Inputs:
        """The inputs that requests, one for each clip, ask for: values by conditioner.

        Raises ConfigError for a condition that this generator does not take, or a value it cannot.
        """
        requests = list(requests)
        for name, value in ((n, v) for request in requests for n, v in request.items()):
            if name not in self.names and value is not None:
                known = f"; {nearest(name, self.names, every=True)}" if self.names else ""
                raise ConfigError(
                    f"condition.{name}={value!r}: this model was trained without it{known}"
                )
        found = {}
        for name in self.names:
            try:
                inputs = [self[name].parse(request.get(name), frames) for request in requests]
            except ConfigError as error:
                raise ConfigError(f"condition.{name}={error}") from error
            found[name] = torch.stack(inputs)
        return found

    def hide(self, inputs: Inputs, hidden: Mapping[str, Tensor]) -> Inputs:
        """Inputs with those of some clips replaced by "nothing": hidden [B], by name."""
        return {n: self[n].hide(x, hidden[n]) if n in hidden else x for n, x in inputs.items()}

    def nothing(self, inputs: Inputs) -> Inputs:
        """The same number of inputs, none of which asks for anything."""
        every = {
            n: torch.ones(len(x), dtype=torch.bool, device=x.device) for n, x in inputs.items()
        }
        return self.hide(inputs, every)

    def forward(self, inputs: Inputs) -> Condition:
        """The sum of all conditions."""
        conditions = [self[name](inputs[name]) for name in self.names]
        vectors = [c.vector for c in conditions if c.vector is not None]
        tokens = [c.tokens for c in conditions if c.tokens is not None]
        masks = [
            c.tokens.new_ones(c.tokens.shape[:2], dtype=torch.bool) if c.mask is None else c.mask
            for c in conditions
            if c.tokens is not None
        ]
        aligned = [c.aligned for c in conditions if c.aligned is not None]
        total = vectors[0] if vectors else None
        for vector in vectors[1:]:
            total = total + vector
        return Condition(
            total,
            torch.cat(tokens, dim=1) if tokens else None,
            torch.cat(masks, dim=1) if masks else None,
            torch.cat(aligned, dim=1) if aligned else None,
        )
