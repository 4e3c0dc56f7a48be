"""Models that have learned something: of one whose predictions are all alike, an engine's mistakes would hardly show."""

import copy
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
import torchqat
from torchqat.data.batches import Batches, tokenize, windows
from torchqat.files import pending_folder
from torchqat.kinds.losses import cross_entropy
from torchqat.model.loading import load_model, load_tokenizer
from torchqat.runs.run import Run
from torchqat.runs.scratch import cache_folder
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
    recipe = torchqat.load_recipe(str(ROOT / "recipes" / "quickstart.yaml"))
    return Run(recipe, tmp_path_factory.mktemp("run"), Silent())


def _sibling(run) -> Path:
    """A Qwen2 of the demo's size, with biases and tied embeddings, trained for a little on the same text."""
    folder = cache_folder() / "models" / f"qwen2-{Path(run.model_path).name}"
    if (folder / "model.safetensors").is_file():
        return folder
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = run.original.config
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    torch.manual_seed(0)
    config = Qwen2Config(
        **{key: getattr(shape, key) for key in keys},
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.max_position_embeddings,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = Qwen2ForCausalLM(config)
    settings = torchqat._library.TrainSection()
    settings.steps, settings.learning_rate = 200, 2e-2
    tokens = tokenize(run.tokenizer, run.corpus.train)

    def loss(batch):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=batch, use_cache=False).logits
        return cross_entropy(logits, batch)

    TrainingLoop(model, loss, Batches(tokens, 4, 256, 0), settings, scratch_optimizers).run()
    with torch.no_grad():  # as large as those of trained Qwen2s, where nothing of them may be forgotten
        for name, parameter in model.named_parameters():
            if name.endswith("_proj.bias"):
                parameter.add_(0.2 * torch.randn_like(parameter))
    with pending_folder(folder) as pending:
        model.save_pretrained(pending)
        run.tokenizer.save_pretrained(pending)
    return folder


@pytest.fixture(scope="session")
def folders(quickstart):
    return {"llama": Path(quickstart.model_path), "qwen2": _sibling(quickstart)}


@pytest.fixture(scope="session")
def trained(folders):
    """Gives a fresh copy of a float model, and its tokenizer."""
    models = {name: load_model(str(folder)) for name, folder in folders.items()}
    tokenizers = {name: load_tokenizer(str(folder)) for name, folder in folders.items()}
    return lambda name: (copy.deepcopy(models[name]), tokenizers[name])


@pytest.fixture(scope="session")
def prompts(quickstart):
    """Held-out text, int64 [4, 48]."""
    return torch.cat(windows(tokenize(quickstart.tokenizer, quickstart.corpus.held_out), 4, 48))
