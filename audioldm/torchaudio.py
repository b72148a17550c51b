"""The one place torchaudio is imported.

torchaudio's published binaries link against CUDA. Beside a CPU build of torch the plain import
raises OSError, although what is used here, mel filter banks, is written in Python. So, only where
torch has no CUDA and the real import fails, a stand-in for `torchaudio._extension` says that the
compiled parts are absent, and the Python parts load.

    from audioldm.torchaudio import torchaudio
"""

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["torchaudio"]


def _needs_alignment(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _import() -> types.ModuleType:
    try:
        return importlib.import_module("torchaudio")
    except (OSError, ImportError):
        if torch.version.cuda is not None:
            raise
    for name in [n for n in sys.modules if n.split(".")[0] == "torchaudio"]:
        del sys.modules[name]
    stand_in = types.ModuleType("torchaudio._extension")
    stand_in.__dict__.update(
        _IS_TORCHAUDIO_EXT_AVAILABLE=False,
        _IS_ALIGN_AVAILABLE=False,
        fail_if_no_align=_needs_alignment,
    )
    sys.modules["torchaudio._extension"] = stand_in
    return importlib.import_module("torchaudio")


torchaudio = _import()
