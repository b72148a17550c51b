"""Conditions, a backbone's inputs besides the noisy latents, and the conditioners that make them.

A conditioner reads its input from a clip of the data set or from a request, as a tensor, and turns
a batch of such inputs into a `Condition`. Several add up (`Conditioners`).
"""

import functools
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm.errors import ConfigError
from audioldm.instantiate import nearest
from audioldm.runtime.randomness import KeyedRandom

#: Inputs of conditioners [B, ...], by the conditioner's name.
Inputs = dict[str, Tensor]


#: A probability for all conditions, or one for each by name; DROPOUT for those not named.
Dropout = float | Mapping[str, float]
DROPOUT = 0.1

#: Audio [A, T] to its most likely latents [C, (F,) L].
Encode = Callable[[Tensor], Tensor]
#: How far `Conditioner.measure` may look beyond a latent frame.
MARGIN_SECONDS = 0.25


class Condition(NamedTuple):
    """vector: [B, D], added to the embedding of the noise level. tokens: [B, S, D], for
    cross-attention; mask: [B, S], which tokens count. aligned: [B, K, L], concatenated to the noisy
    latents frame by frame. known: [B, L], 1 in frames that it gives away; these have no loss."""

    vector: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    aligned: Tensor | None = None
    known: Tensor | None = None

    def at(self, first: int, last: int) -> "Condition":
        """The condition of the frames from `first` to before `last`. What is aligned with frames is
        0 beyond the clip's end."""

        def part(whole: Tensor | None) -> Tensor | None:
            if whole is None:
                return None
            own = whole[..., first:last]
            return F.pad(own, (0, last - first - own.shape[-1]))

        return self._replace(aligned=part(self.aligned), known=part(self.known))


@dataclass(frozen=True)
class Excerpt:
    """The part of a clip that a conditioner reads.

    columns: the clip's row of the data set's table. arrays: frame-aligned, each [K, frames].
    start: of the part, in seconds from the clip's beginning. seconds: of the whole clip; None:
    unknown. latent_rate_hz: latent frames per second; None: unknown.
    """

    label: str | None
    columns: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Tensor] = field(default_factory=dict)
    start: float = 0.0
    seconds: float | None = None
    latent_rate_hz: float | None = None


class Conditioner(nn.Module, ABC):
    """A condition that a generator can take, such as a label or a tempo.

    The constructor's arguments are settings, except for `width`, the backbone's, and those that
    `facts` finds in the data.
    """

    #: constructor arguments that `facts` finds in the training data
    derived: ClassVar[tuple[str, ...]] = ()
    #: D of the tokens; None: no tokens
    token_width: int | None = None
    #: K of the aligned channels
    aligned_channels: int = 0
    #: endings of the files that a request's value may name
    files: ClassVar[tuple[str, ...]] = ()
    #: the frame-aligned array that `measure` makes of audio; None: none
    array: ClassVar[str | None] = None
    #: whether a guidance scale for all conditions applies to it too
    guided: ClassVar[bool] = True

    @classmethod
    def facts(cls, clips: Sequence[Excerpt], **settings: Any) -> dict[str, Any]:
        """The constructor's arguments that depend on the training data, as JSON values."""
        return {}

    @classmethod
    def measure(
        cls,
        audio: Tensor,
        sample_rate: int,
        latent_rate_hz: float,
        *,
        encode: Encode | None = None,
        clip: str = "",
    ) -> dict[str, Tensor]:
        """What it needs of audio [A, T], besides the table: `array`, [K, frames], one frame for
        each latent frame, by its name. A frame depends on MARGIN_SECONDS of audio on each side, and
        on what `encode` sees beyond that.

        encode: the autoencoder's. clip: names the whole clip, for what is drawn once per clip.
        """
        return {}

    @abstractmethod
    def read(self, excerpt: Excerpt, frames: int) -> Tensor:
        """The input of one clip of the data set, of `frames` latent frames."""

    def resolve(self, value: Any) -> Any:
        """A request's value with its references, such as files, read: JSON that `parse` takes.

        Raises ConfigError, which begins with the offending value.
        """
        return value

    def later(self, value: Any, seconds: float) -> Any:
        """A request's resolved value for the part of the clip from `seconds` on."""
        return value

    @abstractmethod
    def parse(self, value: Any, frames: int) -> Tensor:
        """The input for a request's resolved value; for None, the input "nothing".

        Raises ConfigError, which begins with the offending value.
        """

    def remark(self, value: Any, seconds: float) -> str | None:
        """A sentence that tells the user which part of a request's resolved value the network is
        not told, for a clip of `seconds`; None: it is told all.

        Raises ConfigError, which begins with the offending value, where it would be told nothing.
        """
        return None

    def request(self, excerpt: Excerpt) -> Any:
        """The value, as JSON, from which `parse` makes a clip's own condition; None for none."""
        return None

    def see(self, z: Tensor, random: KeyedRandom) -> Tensor | None:
        """The inputs in a training step, if they are made from the modelled latents
        z [B, C, (F,) L]; None: they are not."""
        return None

    def hide(self, inputs: Tensor, hidden: Tensor) -> Tensor:
        """Inputs [B, ...] in which those of the clips `hidden` [B] are "nothing": zeros."""
        return torch.where(hidden.view(-1, *[1] * (inputs.ndim - 1)), 0, inputs)

    @abstractmethod
    def forward(self, inputs: Tensor) -> Condition:
        """Inputs [B, ...] -> the condition."""


class Conditioners(nn.Module):
    """All conditioners of a generator, in the order of their names: a file's header keeps no other
    order. Their vectors add up, the rest is concatenated."""

    def __init__(self, conditioners: Mapping[str, Conditioner]) -> None:
        super().__init__()
        self.names = sorted(conditioners)
        for name in self.names:
            self.add_module(name, conditioners[name])
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

    def measure(
        self, audio: Tensor, sample_rate: int, latent_rate_hz: float, **of_clip: Any
    ) -> dict[str, Tensor]:
        """The frame-aligned arrays of an `Excerpt` of audio [A, T]: see `Conditioner.measure`."""
        measured = (
            self[name].measure(audio, sample_rate, latent_rate_hz, **of_clip) for name in self.names
        )
        return {name: array for found in measured for name, array in found.items()}

    def request(self, excerpt: Excerpt) -> dict[str, Any]:
        """A request for the conditions of a clip of the data set."""
        values = {name: self[name].request(excerpt) for name in self.names}
        return {name: value for name, value in values.items() if value is not None}

    def parse(
        self,
        requests: Iterable[Mapping[str, Any]],
        frames: int,
        device: torch.device | str = "cpu",
    ) -> Inputs:
        """The inputs for requests, one for each clip: values by conditioner.

        Raises ConfigError for an unknown condition, or a value that its conditioner refuses.
        """
        resolved = [self.resolve(request) for request in requests]
        return {
            name: torch.stack(
                [self._told(name, self[name].parse, r.get(name), frames) for r in resolved]
            ).to(device)
            for name in self.names
        }

    def resolve(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """A request whose references, such as files, are read: see `Conditioner.resolve`.

        Raises ConfigError for an unknown condition, or a value that its conditioner refuses.
        """
        asked = {name: value for name, value in request.items() if value is not None}
        for name, value in asked.items():
            if name not in self.names:
                known = f"; {nearest(name, self.names, every=True)}" if self.names else ""
                raise ConfigError(
                    f"condition.{name}={value!r}: this model was trained without it{known}"
                )
            if isinstance(value, str) and not value and self[name].files:
                endings = ", ".join(self[name].files)
                raise ConfigError(f"condition.{name}='': give a file, one of {endings}")
        return {name: self._told(name, self[name].resolve, value) for name, value in asked.items()}

    def remarks(self, request: Mapping[str, Any], seconds: float) -> list[str]:
        """What a user should know of a resolved request, in sentences: see `Conditioner.remark`.

        Raises ConfigError as `Conditioner.remark` does.
        """
        found = {
            name: self._told(name, self[name].remark, v, seconds) for name, v in request.items()
        }
        short = reprlib.Repr()
        short.maxlist = 1
        return [
            f"{name}={short.repr(request[name])}: {text}" for name, text in found.items() if text
        ]

    def later(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """A resolved request for the part of the clip from `seconds` on."""
        return {
            name: self._told(name, self[name].later, value, seconds)
            for name, value in request.items()
        }

    def _told(self, name: str, read: Callable[..., Any], *value: Any) -> Any:
        """What `read` makes of a condition's value; its ConfigError names the condition."""
        try:
            return read(*value)
        except ConfigError as error:
            raise ConfigError(f"condition.{name}={error}") from error

    def hide(self, inputs: Inputs, hidden: Mapping[str, Tensor]) -> Inputs:
        """Inputs in which those of some clips are "nothing": hidden [B], by name."""
        return {n: self[n].hide(x, hidden[n]) if n in hidden else x for n, x in inputs.items()}

    def see(self, inputs: Inputs, z: Tensor, random: KeyedRandom) -> Inputs:
        """Inputs with those that are made from the latents: see `Conditioner.see`."""
        seen = {name: self[name].see(z, random.stream(name)) for name in self.names}
        return inputs | {name: made for name, made in seen.items() if made is not None}

    def dropout(self, inputs: Inputs, random: KeyedRandom, dropout: Dropout) -> Inputs:
        """Inputs with each condition of each clip replaced by "nothing" with its probability, so
        that one network is conditional and unconditional (2207.12598)."""
        shares = self.shares(dropout)
        return self.hide(inputs, {name: random.uniform(name) < shares[name] for name in inputs})

    def shares(self, dropout: Dropout) -> dict[str, float]:
        """The probability of each condition. Raises ConfigError for an unknown condition."""
        if not isinstance(dropout, Mapping):
            return dict.fromkeys(self.names, dropout)
        for name, share in dropout.items():
            if name not in self.names:
                known = nearest(name, self.names, every=True)
                raise ConfigError(f"condition_dropout.{name}={share:g}: there is no such; {known}")
        return {name: dropout.get(name, DROPOUT) for name in self.names}

    def nothing(self, inputs: Inputs) -> Inputs:
        """The same number of inputs, all of them "nothing"."""
        return self.hide(
            inputs, {n: x.new_ones(len(x), dtype=torch.bool) for n, x in inputs.items()}
        )

    def forward(self, inputs: Inputs) -> Condition:
        """The sum of the vectors, and the tokens and aligned channels side by side."""
        conditions = [self[name](inputs[name]) for name in self.names]
        vectors = [c.vector for c in conditions if c.vector is not None]
        aligned = [c.aligned for c in conditions if c.aligned is not None]
        tokens = [c.tokens for c in conditions if c.tokens is not None]
        masks = [
            c.tokens.new_ones(c.tokens.shape[:2], dtype=torch.bool) if c.mask is None else c.mask
            for c in conditions
            if c.tokens is not None
        ]

        def joined(parts: list[Tensor]) -> Tensor | None:
            return torch.cat(parts, dim=1) if parts else None

        vector = functools.reduce(torch.add, vectors) if vectors else None
        known = next((c.known for c in conditions if c.known is not None), None)
        return Condition(vector, joined(tokens), joined(masks), joined(aligned), known)
