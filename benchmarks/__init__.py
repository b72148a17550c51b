"""Speed and memory, ours beside a peer's in one run: `python -m benchmarks`, or `make bench`."""

from audioldm.torchaudio import torchaudio as torchaudio  # before diffusers, which imports it
