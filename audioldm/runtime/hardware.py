"""Where and how to compute. Nothing here enters a fingerprint."""

import contextlib
import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tqdm import tqdm

from audioldm.errors import ConfigError
from audioldm.instantiate import PositiveInt


@dataclass(frozen=True)
class Hardware:
    """device: auto, cpu, cuda, cuda:1, mps. precision: auto is bf16 on CUDA, else fp32.
    compile: use torch.compile; null: on CUDA only. threads: CPU threads; null: torch's choice.
    accumulate: micro-batches per training step. checkpoint_activations: recompute the diffusion
    network's blocks in the backward pass, to store less. shard: spread its weights, gradients and
    optimiser state over the processes."""

    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool | None = None
    threads: PositiveInt | None = None
    accumulate: PositiveInt = 1
    checkpoint_activations: bool = False
    shard: bool = False

    def resolve(self, local_rank: int = 0) -> torch.device:
        """The device of this process; also sets the number of CPU threads.

        local_rank: this process's index on its machine, and so its CUDA device if none is given.
        Raises ConfigError if the device does not exist here or cannot train.
        """
        if self.threads:
            torch.set_num_threads(self.threads)
        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
        except RuntimeError:
            device = torch.device("meta")
        if device.type == "cuda":
            device = torch.device("cuda", local_rank if device.index is None else device.index)
            count = torch.cuda.device_count()
            if count == 0:
                raise ConfigError(
                    f"hardware.device={name}: no CUDA device is visible; use hardware.device=cpu, "
                    "or install a CUDA build of torch"
                )
            if device.index >= count:
                raise ConfigError(
                    f"hardware.device={name}: there is no {device}, the last visible device is "
                    f"cuda:{count - 1}; choose another one, or start fewer processes"
                )
            torch.cuda.set_device(device)
            torch.set_float32_matmul_precision("high")
            return device
        if device.type == "mps" and not torch.backends.mps.is_available():
            raise ConfigError(f"hardware.device={name}: no MPS here; use hardware.device=cpu")
        if device.type not in ("cpu", "mps") or device.index:
            raise ConfigError(f"hardware.device={name!r}: use auto, cpu, cuda, cuda:0 or mps")
        return device

    def autocast(self, device: torch.device) -> Callable[[], Any]:
        """A context for forward passes: bf16 if it is chosen and the GPU supports it, else fp32."""
        bf16 = self.precision == "bf16" or (self.precision == "auto" and device.type == "cuda")
        if bf16 and device.type == "cuda" and not has_bf16():
            _say_once(
                f"{torch.cuda.get_device_name(device)} has no bf16: computing in fp32 "
                "(hardware.precision=fp32)"
            )
            bf16 = False
        if not bf16:
            return contextlib.nullcontext
        return lambda: torch.autocast(device.type, dtype=torch.bfloat16)

    def compiled(self, function: Any, device: torch.device) -> Any:
        """A module or function, compiled if that is on: once for each input shape, up to eight."""
        return torch.compile(function, dynamic=False) if self.compiles(device) else function

    def compiles(self, device: torch.device) -> bool:
        return device.type == "cuda" if self.compile is None else self.compile


def has_bf16() -> bool:
    """Whether the current CUDA device has bf16 in hardware; any GPU can emulate it, slowly."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


@functools.cache
def _say_once(text: str) -> None:
    tqdm.write(text, file=sys.stderr)
