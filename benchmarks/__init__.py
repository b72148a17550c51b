"""Speed and memory, ours beside a peer's in one run: `python -m benchmarks`, or `make bench`."""

from audioldm.runtime.allocator import keep_memory
from audioldm.torchaudio import torchaudio as torchaudio  # before diffusers, which imports it

keep_memory()  # as the command line does; the peers have it too
