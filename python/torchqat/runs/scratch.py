"""A small Llama and its byte-level BPE tokenizer, built from a corpus alone: a real model where none can be fetched."""

import hashlib
from pathlib import Path

import torch
from torch import nn

from torchqat._library import Recipe, ScratchModel, TrainSection
from torchqat.data.batches import Batches
from torchqat.data.corpus import Corpus
from torchqat.data.tokenized import tokenize
from torchqat.device import CPU
from torchqat.extras import needs
from torchqat.files import cache_folder, pending_folder
from torchqat.kinds.losses import cross_entropy
from torchqat.precision import products
from torchqat.runs.progress import Progress
from torchqat.training.loop import TrainingLoop
from torchqat.training.optimizers import scratch_optimizers

_END = "<|endoftext|>"


def train_tokenizer(documents: list[str], vocabulary: int):
    """A byte-level BPE tokenizer of ``vocabulary`` tokens, the end-of-text token included."""
    with needs("hf", "model.scratch"):
        from tokenizers import ByteLevelBPETokenizer
        from transformers import PreTrainedTokenizerFast

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        documents, vocab_size=vocabulary, min_frequency=2, special_tokens=[_END], show_progress=False
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token=_END, bos_token=_END)


def new_model(settings: ScratchModel, vocabulary: int, seed: int) -> nn.Module:
    """A Llama with random weights, tied embeddings, in float32."""
    with needs("hf", "model.scratch"):
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


def cache_key(settings: ScratchModel, seed: int, corpus: list[str], mixed: bool) -> str:
    """Names a trained model by everything it depends on."""
    digest = hashlib.sha256()
    fields = [name for name in dir(settings) if not name.startswith("_")]
    known = [(name, getattr(settings, name)) for name in fields] + [seed, 1] + ([] if mixed else ["float32"])
    digest.update(repr(known).encode())
    for document in corpus:
        digest.update(document.encode("utf-8", "replace"))
    return digest.hexdigest()[:16]


def is_complete(folder: Path) -> bool:
    """Whether ``folder`` has a model that was written to its end."""
    return (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()


def train_scratch(recipe: Recipe, corpus: Corpus, progress: Progress, device: torch.device) -> Path:
    """The folder of the recipe's scratch model, trained on ``corpus``, on ``device``, unless the cache has it."""
    scratch, mixed = recipe.model.scratch, products(device, torch.bfloat16).multiplied
    folder = cache_folder() / "models" / cache_key(scratch, recipe.train.seed, corpus.train, mixed)
    if is_complete(folder):
        return folder
    progress.say(f"Training a tokenizer of {scratch.vocabulary} tokens")
    tokenizer = train_tokenizer(corpus.train, scratch.vocabulary)
    model = new_model(scratch, len(tokenizer), recipe.train.seed).to(device)
    settings = TrainSection()
    settings.steps, settings.learning_rate, settings.seed = scratch.steps, scratch.learning_rate, recipe.train.seed
    tokens = tokenize(tokenizer, corpus.train)

    def loss(batch):
        # Mixed precision: the scratch model is a starting point, and this cuts its price where it is not emulated.
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            logits = model(input_ids=batch, use_cache=False).logits
        return cross_entropy(logits, batch)

    checkpoint = folder.with_suffix(".training.pt")
    loop = TrainingLoop(
        model,
        loss,
        Batches(tokens, scratch.batch_size, scratch.sequence_length, recipe.train.seed),
        settings,
        scratch_optimizers,
        checkpoint=checkpoint,
        identity=folder.name,
        on_step=progress.steps("Training the float model", scratch.steps),
    )
    loop.run()
    with pending_folder(folder) as pending:
        model.to(CPU).save_pretrained(pending)
        tokenizer.save_pretrained(pending)
    checkpoint.unlink(missing_ok=True)
    return folder
