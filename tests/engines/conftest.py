"""Models that have learned something: of one whose predictions are all alike, an engine's mistakes would hardly show."""

import copy
import os
from functools import cache
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
import torchqat
from torchqat.data.batches import Batches
from torchqat.data.tokenized import tokenize
from torchqat.data.windows import windows
from torchqat.files import cache_folder, pending_folder
from torchqat.kinds.losses import cross_entropy
from torchqat.model.loading import load_model, load_tokenizer
from torchqat.runs.run import Run
from torchqat.training.loop import TrainingLoop
from torchqat.training.optimizers import scratch_optimizers

ROOT = Path(__file__).parents[2]
MODELS = ("llama", "qwen2")


class Silent:
    """A run's news, unheard."""

    def say(self, text):
        pass

    def steps(self, title, total):
        return lambda *_, **__: None


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory):
    """The demo's run: its model is trained once and cached."""
    # A larger model, trained for longer than that of the quickstart, which is made to be quick.
    scratch = {"hidden_size": 256, "intermediate_size": 768, "layers": 6, "steps": 500, "batch_size": 4}
    recipe = torchqat.load_recipe("quickstart", {f"model.scratch.{key}": value for key, value in scratch.items()})
    return Run(recipe, tmp_path_factory.mktemp("run"), Silent())


def _shape(run, *others) -> dict:
    """The sizes of the demo's model, as configurations of other architectures take them."""
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
    shape = run.original.config
    return {key: getattr(shape, key) for key in (*keys, "max_position_embeddings", *others)}


def _qwen2(run):
    """With biases and tied embeddings."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = _shape(run, "intermediate_size")
    return Qwen2ForCausalLM(Qwen2Config(**shape, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0))


def _qwen3_moe(run):
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256, "norm_topk_prob": True}
    config = Qwen3MoeConfig(**_shape(run, "intermediate_size"), **experts, head_dim=64, bos_token_id=0, eos_token_id=0)
    return Qwen3MoeForCausalLM(config)


def _mixtral(run):
    from transformers import MixtralConfig, MixtralForCausalLM

    shape = {**_shape(run), "intermediate_size": 256, "num_local_experts": 4, "num_experts_per_tok": 2}
    return MixtralForCausalLM(MixtralConfig(**shape, bos_token_id=0, eos_token_id=0))


# Of the demo's size, trained for a little on the same text.
SIBLINGS = {"qwen2": _qwen2, "qwen3_moe": _qwen3_moe, "mixtral": _mixtral}


def _sibling(run, name: str) -> Path:
    folder = cache_folder() / "models" / f"{name}-{Path(run.model_path).name}"
    if (folder / "model.safetensors").is_file():
        return folder
    torch.manual_seed(0)
    model = SIBLINGS[name](run)
    settings = torchqat._library.TrainSection()
    settings.steps, settings.learning_rate = 200, 2e-2
    tokens = tokenize(run.tokenizer, run.corpus.train)

    def loss(batch):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=batch, use_cache=False).logits
        return cross_entropy(logits, batch)

    TrainingLoop(model, loss, Batches(tokens, 4, 256, 0), settings, scratch_optimizers).run()
    with torch.no_grad():  # as large as those of trained Qwen2s, where nothing of them may be forgotten
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("_proj.bias"):
                parameter.add_(0.2 * torch.randn_like(parameter))
    with pending_folder(folder) as pending:
        model.save_pretrained(pending)
        run.tokenizer.save_pretrained(pending)
    return folder


@pytest.fixture(scope="session")
def trained(quickstart):
    """Gives a fresh copy of a float model, and its tokenizer."""

    @cache
    def loaded(name):
        folder = str(quickstart.model_path if name == "llama" else _sibling(quickstart, name))
        return load_model(folder), load_tokenizer(folder)

    def fresh(name):
        model, tokenizer = loaded(name)
        return copy.deepcopy(model), tokenizer

    return fresh


@pytest.fixture(scope="session")
def prompts(quickstart):
    """Held-out text, int64 [4, 48]."""
    return torch.cat(windows(tokenize(quickstart.tokenizer, quickstart.corpus.held_out), 4, 48))
