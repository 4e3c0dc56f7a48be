"""Which models there are, and how a tiny one of each is built: seeded, and nothing in it left at zeros or ones."""

from dataclasses import dataclass

import torch
import transformers
from torch import nn

from model_zoo.exceptions import EXCEPTIONS
from model_zoo.shrink import shrunk

# What a model is for, and the class of transformers that builds it.
PURPOSES = {
    "text": transformers.AutoModelForCausalLM,
    "image and text": transformers.AutoModelForImageTextToText,
    "text to text": transformers.AutoModelForSeq2SeqLM,
    "speech to text": transformers.AutoModelForSpeechSeq2Seq,
    "speech": transformers.AutoModelForCTC,
    "sound classes": transformers.AutoModelForAudioClassification,
    "text classes": transformers.AutoModelForSequenceClassification,
    "token classes": transformers.AutoModelForTokenClassification,
    "image classes": transformers.AutoModelForImageClassification,
    "vectors": transformers.AutoModel,
}
# Beside every causal language model.
OTHERS = {
    "image and text": (
        "aya_vision gemma3 gemma4 glm4v idefics3 internvl llava llava_next mistral3 mllama paligemma qwen2_5_vl qwen2_vl "
        "qwen3_5 qwen3_vl qwen3_vl_moe smolvlm"
    ),
    "text to text": (
        "bart blenderbot led longt5 m2m_100 marian mbart mt5 nllb-moe pegasus prophetnet switch_transformers t5 t5gemma umt5"
    ),
    "speech to text": "whisper moonshine speech_to_text",
    "speech": "wav2vec2 hubert wav2vec2-conformer",
    "sound classes": "audio-spectrogram-transformer",
    "text classes": (
        "albert bert deberta deberta-v2 distilbert electra gpt2 llama mistral modernbert mpnet qwen3 qwen3_moe "
        "roberta xlm-roberta"
    ),
    "token classes": "bert deberta-v2 xlm-roberta",
    "image classes": "beit bit convnext dinov2 focalnet mobilenet_v2 resnet segformer siglip swin swinv2 vit",
    "vectors": "bert clip distilbert gemma3_text mistral modernbert mpnet qwen3 siglip xlm-roberta",
}
# Types whose causal language model is built from a part of their configuration, which transformers' mapping does not say.
_DECODERS = {"musicgen": "MusicgenForCausalLM", "musicgen_melody": "MusicgenMelodyForCausalLM"}


@dataclass(frozen=True)
class Entry:
    """A model type of transformers, and what one of it is for."""

    kind: str
    purpose: str = "text"

    def __str__(self) -> str:
        return self.kind if self.purpose == "text" else f"{self.kind}, {self.purpose}"


def entries() -> list[Entry]:
    """Every causal language model of the transformers that is installed, and those of ``OTHERS``."""
    causal = [Entry(kind) for kind in transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    return causal + [Entry(kind, purpose) for purpose, kinds in OTHERS.items() for kind in kinds.split()]


def build(entry: Entry) -> nn.Module:
    """The tiny model, in float32 and evaluation mode. What transformers raises is passed on."""
    settings = {**EXCEPTIONS.get(entry.kind, {}), **EXCEPTIONS.get(str(entry), {})}
    config = shrunk(entry.kind, settings)
    if entry.purpose == "text" and hasattr(config, "is_decoder"):
        config.is_decoder = True
    if entry.purpose == "text classes" and config.pad_token_id is None:
        config.pad_token_id = 0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _new(entry, config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_((0.05 if parameter.dim() > 1 else 0.1) * torch.randn_like(parameter))
    return model


def _new(entry: Entry, config: transformers.PreTrainedConfig) -> nn.Module:
    if entry.purpose == "text" and entry.kind in _DECODERS:
        return getattr(transformers, _DECODERS[entry.kind])._from_config(config.decoder, dtype=torch.float32)
    return PURPOSES[entry.purpose].from_config(config, dtype=torch.float32)
