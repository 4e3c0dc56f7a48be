"""A small Llama and its byte-level BPE tokenizer, built from a corpus alone: a real model where none can be fetched."""

from pathlib import Path

import torch
from torch import nn

from torchqat._library import ScratchModel

_END = "<|endoftext|>"


def train_tokenizer(documents: list[str], vocabulary: int):
    """A byte-level BPE tokenizer of ``vocabulary`` tokens, the end-of-text token included."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        documents, vocab_size=vocabulary, min_frequency=2, special_tokens=[_END], show_progress=False
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token=_END, bos_token=_END)


def new_model(settings: ScratchModel, vocabulary: int, seed: int) -> nn.Module:
    """A Llama with random weights, tied embeddings, in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        max_position_embeddings=max(1024, settings.sequence_length),
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def cache_key(settings: ScratchModel, seed: int, corpus: list[str]) -> str:
    """Names a trained model by everything it depends on."""
    import hashlib

    digest = hashlib.sha256()
    fields = [name for name in dir(settings) if not name.startswith("_")]
    digest.update(repr([(name, getattr(settings, name)) for name in fields] + [seed, 1]).encode())
    for document in corpus:
        digest.update(document.encode("utf-8", "replace"))
    return digest.hexdigest()[:16]


def is_complete(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()
