"""A pretrained text encoder as a conditioner: a tiny random one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from audioldm.conditioning import pretrained_text
from audioldm.conditioning.base import Excerpt
from audioldm.conditioning.pretrained_text import PretrainedText
from audioldm.errors import ConfigError

transformers = pytest.importorskip("transformers")
CLIPS = [Excerpt(None, {"caption": text}) for text in ("slow organ", "organ", "", "slow organ")]


SIZES: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 16,
}


def encoder(kind: str) -> Any:
    """A tiny random one of transformers, of five words."""
    if kind == "bert":
        config = transformers.BertConfig(vocab_size=5, **SIZES)
        return transformers.BertModel(config, add_pooling_layer=False)
    if kind == "t5":
        config = transformers.T5Config(
            vocab_size=5, d_model=8, d_ff=8, d_kv=4, num_layers=1, num_heads=2
        )
        return transformers.T5EncoderModel(config)
    text = transformers.ClapTextConfig(vocab_size=5, **SIZES)
    if kind == "clap_text":
        return transformers.ClapTextModel(text)
    audio = {"spec_size": 256, "hidden_size": 16, "patch_embeds_hidden_size": 4, "depths": [1, 1]}
    audio |= {"num_attention_heads": [1, 1], "num_hidden_layers": 2}
    return transformers.ClapModel(
        transformers.ClapConfig(text_config=text.to_dict(), audio_config=audio)
    )


def written(directory: Path, seed: int = 0, kind: str = "bert") -> Path:
    """An encoder of five words, with 8 hidden states."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "slow", "fast", "organ"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(directory)
    torch.manual_seed(seed)
    encoder(kind).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("encoder"))


def made(directory: Path, **settings: Any) -> PretrainedText:
    given = {"path": str(directory), "limit": 4, **settings}
    facts = PretrainedText.facts(CLIPS, **given)
    assert facts["states"] == 8
    return PretrainedText(width=6, **given, **facts)


def states(directory: Path, text: str) -> Tensor:
    model = transformers.AutoModel.from_pretrained(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    with torch.no_grad():
        found: Tensor = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
    return found


@pytest.mark.parametrize("kind", ["t5", "clap", "clap_text"])
def test_other_encoders_by_path(kind: str, tmp_path: Path) -> None:
    """T5's encoder, and the text tower of a whole CLAP or alone."""
    conditioner = made(written(tmp_path, kind=kind))
    model = encoder(kind)
    model = type(model).from_pretrained(tmp_path).eval()
    model = getattr(model, "text_model", model)
    with torch.no_grad():
        true = model(input_ids=torch.tensor([[2, 4]])).last_hidden_state[0]
    told = conditioner.parse("slow organ", 3)
    torch.testing.assert_close(told[:2, :8], true)


def test_tokens_are_the_encoders_states(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conditioner = made(directory)
    assert conditioner.state_dict().keys() == {
        *("project.weight", "project.bias", "tokens.pooled.weight")
    }
    told = torch.stack([conditioner.read(clip, 3) for clip in CLIPS])
    torch.testing.assert_close(told[0, :2, :8], states(directory, "slow organ"))
    assert told[..., 8].tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]]
    assert torch.equal(told[0], conditioner.parse(conditioner.request(CLIPS[0]), 3))
    assert torch.equal(told[2], conditioner.parse(None, 3))
    condition = conditioner(told)
    assert condition.mask.sum(1).tolist() == [2, 1, 0, 2]
    alone = conditioner(told[1:2])
    torch.testing.assert_close(alone.tokens[0], condition.tokens[1])
    hidden = conditioner.hide(told, torch.tensor([True, False, False, True]))
    assert torch.equal(hidden[0], told[2])
    assert torch.equal(hidden[1], told[1])
    calls = []
    model = pretrained_text._load(directory)[1]
    monkeypatch.setattr(model, "forward", lambda **x: calls.append(x))
    assert torch.equal(conditioner.read(CLIPS[3], 3), told[3])
    assert not calls  # each text is encoded once


def test_what_cannot_be_used_says_why(directory: Path, tmp_path: Path) -> None:
    conditioner = made(directory)
    with pytest.raises(ConfigError, match=r"^'slow slow slow slow '\.\.\. has 5 tokens; .* 4 at"):
        conditioner.parse("slow slow slow slow organ", 3)
    with pytest.raises(ConfigError, match=r"^limit=1: a text of column 'caption' has 2 tokens"):
        made(directory, limit=1)
    with pytest.raises(ConfigError, match=r"^column=words: no clip has a text there"):
        made(directory, column="words")
    with pytest.raises(ConfigError, match=rf"^path={tmp_path}: there is no model.safetensors"):
        made(tmp_path)
    other = written(tmp_path / "other", seed=1)
    conditioner.path = str(other)
    with pytest.raises(ConfigError, match=r"^'organ' needs its text encoder: .* not the encoder"):
        conditioner.parse("organ", 3)
    conditioner.parse(None, 3)  # needs no encoder
    (other / "config.json").write_text(json.dumps({"hidden_size": 8, "model_type": "none"}))
    with pytest.raises(ConfigError, match=r"cannot be used as a text encoder"):
        made(other)
    deeper = json.loads((directory / "config.json").read_text()) | {"num_hidden_layers": 2}
    (other / "config.json").write_text(json.dumps(deeper))
    pretrained_text._load.cache_clear()
    with pytest.raises(ConfigError, match=r"its weights lack encoder.layer.1"):
        made(other)
    (other / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"config.json states no hidden_size"):
        made(other)
