"""A tiny Llama that adds two digits, and its tokenizer: what the examples of TRL train."""

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

RECIPE = """
version: 1
layers:
  - match: "model.layers.*"
    weight: {dtype: int2, group_size: 32, grid: full, scale: learned}
schedule:
  - {until: 25%, weight: int4}
  - {until: 100%, weight: int2}
train: {learning_rate: 1.0e-3, scale_learning_rate: 1.0e-3}
"""
SUMS = [(f"{a}+{b}=", f"{a + b:02}") for a in range(10) for b in range(10)]


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a character."""
    words = {character: index for index, character in enumerate(["<pad>", "<end>", *"0123456789+="])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<end>")


def model_that_adds(steps: int = 400) -> LlamaForCausalLM:
    """A model in full precision, the same in every process."""
    torch.manual_seed(0)
    settings = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=14, pad_token_id=0, eos_token_id=1, bos_token_id=None, **settings))
    ids = tokenizer()([prompt + answer + "<end>" for prompt, answer in SUMS], return_tensors="pt")["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        logits = model(input_ids=ids).logits[:, 3:-1]
        cross_entropy(logits.flatten(0, 1), ids[:, 4:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def examples() -> Dataset:
    """Prompts and the answers to them."""
    return Dataset.from_dict({"prompt": [prompt for prompt, _ in SUMS], "completion": [answer for _, answer in SUMS]})


@torch.no_grad()
def accuracy(model: LlamaForCausalLM) -> float:
    """Share of the sums that are right, by greedy decoding."""
    model.eval()
    ids = tokenizer()([prompt for prompt, _ in SUMS], return_tensors="pt")["input_ids"]
    written = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, min_new_tokens=2, do_sample=False
    )
    answers = tokenizer().batch_decode(written[:, ids.shape[1] :])
    return sum(found == answer for found, (_, answer) in zip(answers, SUMS, strict=True)) / len(SUMS)
