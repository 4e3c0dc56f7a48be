"""What OpenVINO GenAI makes of a GGUF file: its constants are the codes and scales of training, and so are its answers."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import torchqat
from engine_models import IN_EIGHT_BITS, OFFSET, SIGNED, needs
from gguf_models import build as build_architecture
from torchqat.checkpoints.formats.tensors import checkpoint_plan
from torchqat.layers.prepared import quant_layers
from torchqat.verification.engines import OPENVINO, Question
from torchqat.verification.engines.agreement import agreement_of

Q6_K = "{dtype: q6_k}"
# Of the largest weight of a layer: what a scale, or the least level of a block, loses where it becomes a float16 once more.
ROUNDED = {SIGNED: 0.0, IN_EIGHT_BITS: 0.0, OFFSET: 2**-10, Q6_K: 2**-10}


def byte_level(vocabulary: int):
    """Neither GenAI runs a model without a vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the text that a vocabulary is made of"] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>")


def exported(name, weight, folder):
    heads = {"head_dim": 64} if name == "qwen3" else {}  # 4 of them, so that 256 divides every layer
    model = build_architecture(name, hidden_size=256, intermediate_size=512, **heads)
    rule = f'version: 1\nlayers:\n  - {{match: "model.layers.*", weight: {weight}}}\n'
    model = torchqat.prepare(model, torchqat.parse_recipe(rule)).eval()
    return model, torchqat.export(model, folder, "gguf", byte_level(model.config.vocab_size))


def constants(folder: Path) -> list[torch.Tensor]:
    script, output = Path(__file__).with_name("openvino_dequantize.py"), folder.parent / "dense.npz"
    subprocess.run([os.environ[OPENVINO.variable()], str(script), str(folder), str(output)], check=True)
    with np.load(output) as arrays:
        return [torch.from_numpy(arrays[name]) for name in arrays.files]


@pytest.mark.parametrize("weight", ROUNDED)
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_its_constants_are_the_weights_of_training(name, weight, tmp_path):
    """Layer by layer: of those of one shape, each of ours is one of theirs, bit for bit or but for a rounding to float16."""
    needs("openvino")
    model, folder = exported(name, weight, tmp_path / "out")
    found = constants(folder)
    assert len(found) == len(quant_layers(model))
    for name_of_layer, layer in quant_layers(model):
        ours = layer.quantized_weight().float()
        fitting = [index for index, theirs in enumerate(found) if theirs.shape == ours.shape]
        errors = {index: ((found[index] - ours).abs().max() / ours.abs().max()).item() for index in fitting}
        nearest = min(errors, key=errors.get)
        assert errors[nearest] <= ROUNDED[weight], f"{name_of_layer}: {errors[nearest]}"
        del found[nearest]


@pytest.mark.parametrize("weight", ["{dtype: q4_k}", "{mix: q4_k_m}"])
def test_it_would_round_zero_points_of_q4_k(weight, tmp_path):
    """Which is why it is refused: what it computes is far from the forward, where other types are at 1e-7."""
    needs("openvino")
    model, folder = exported("llama", weight, tmp_path / "out")
    with pytest.raises(torchqat.UserError, match="is Q4_K"):
        OPENVINO.check(model, checkpoint_plan(model).layers)
    tokens = torch.randint(5, 320, (4, 40), generator=torch.Generator().manual_seed(2))
    found = agreement_of(
        OPENVINO, OPENVINO.serve("gguf", Question(str(folder), tokens.tolist())), model, tokens, half=True
    )
    assert not found.ok and found.kl > 1e-3, str(found)


def test_it_passes_over_scaled_positions(tmp_path):
    """Which is why they are refused."""
    needs("openvino")
    model, folder = exported("llama linear", SIGNED, tmp_path / "out")
    with pytest.raises(torchqat.UserError, match="this one has linear"):
        torchqat.verify(folder, model, engine="openvino")
    tokens = torch.randint(5, 320, (4, 40), generator=torch.Generator().manual_seed(2))
    found = agreement_of(
        OPENVINO, OPENVINO.serve("gguf", Question(str(folder), tokens.tolist())), model, tokens, half=True
    )
    assert not found.ok, str(found)


def test_a_checkpoint_is_left_as_it_was(tmp_path):
    """GenAI writes its graph beside the file that it is given."""
    needs("openvino")
    model, folder = exported("qwen2", SIGNED, tmp_path / "out")
    before = sorted(path.name for path in folder.iterdir())
    checked = torchqat.verify(folder, model, engine="openvino")
    assert checked.ok and checked.agreement.kl < 1e-5, str(checked)
    assert sorted(path.name for path in folder.iterdir()) == before
