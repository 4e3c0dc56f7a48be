"""Our own folders in ExecuTorch: one program in which XNNPACK multiplies INT4 weights in groups with inputs of INT8 (8da4w).

    python executorch_worker.py FOLDER MODEL.pte [TOKENS]

writes that program for texts of up to so many tokens, 512 when not given: token ids in, logits out. torchao holds the codes
and scales as they are.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from safetensors.torch import load_file
from torch import Tensor, nn
from torchao.quantization.quantize_.workflows.intx import intx_unpacked_to_int8_tensor as torchao_intx


class Model:
    """See ``serving.py``."""

    def __init__(self, folder: Path, question: dict):
        # Names of a program's parts are read for as long as it runs.
        self.program = Runtime.get().load_program(made(folder, question["context"]))
        self.method = self.program.load_method("forward")

    def logprobs(self, prompt: list[int]) -> np.ndarray:
        return torch.log_softmax(self._logits(prompt), -1).numpy()

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """Over the whole text for each token: the program keeps nothing of it."""
        tokens: list[int] = []
        for _ in range(count):
            tokens.append(int(self._logits([*prompt, *tokens])[-1].argmax()))
        return tokens

    def _logits(self, tokens: list[int]) -> Tensor:
        return self.method.execute((torch.tensor([tokens]),))[0][0].clone()


class _Logits(nn.Module):
    """What is traced: positions and mask are made here, of which transformers' own depend on more than the length."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        positions = torch.arange(input_ids.shape[1])
        later = positions[None, :] > positions[:, None]
        mask = torch.zeros(later.shape).masked_fill(later, torch.finfo(torch.float32).min)[None, None]
        found = self.model(input_ids=input_ids, attention_mask=mask, position_ids=positions[None], use_cache=False)
        return found.logits


def made(folder: Path, tokens: int) -> bytes:
    """The program."""
    example, length = torch.zeros(1, 8, dtype=torch.int64), torch.export.Dim("tokens", min=1, max=tokens)
    with torch.no_grad():
        traced = torch.export.export(_Logits(loaded(folder)), (example,), dynamic_shapes=({1: length},), strict=False)
        lowered = to_edge_transform_and_lower(traced, partitioner=[XnnpackPartitioner()])
    return lowered.to_executorch().buffer


def loaded(folder: Path) -> nn.Module:
    """The model of a folder of the format ``safetensors``, in float32, its planned layers in torchao's tensors."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    planned = json.loads((folder / "config.json").read_text())["quantization_config"]["layers"]
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(file))
    for name, spec in planned.items():
        codes, scale = tensors.pop(f"{name}.codes"), tensors.pop(f"{name}.scale")
        weight = _weight(codes, scale.float(), spec["weight"]["group_size"])
        model.get_submodule(name).weight = nn.Parameter(weight, requires_grad=False)
    left = model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=False)
    assert not left.unexpected_keys, left.unexpected_keys
    return model.requires_grad_(False)


def _weight(words: Tensor, scale: Tensor, group: int) -> Tensor:
    """Codes of 4 bits, the first of eight in the lowest bits of a word, as one to a byte with their sign."""
    fields = (words[:, :, None] >> torch.arange(0, 32, 4, dtype=torch.int32)) & 15
    return torchao_intx.IntxUnpackedToInt8Tensor(
        qdata=(fields.flatten(1) - 8).to(torch.int8),
        scale=scale,
        zero_point=torch.zeros_like(scale, dtype=torch.int8),
        target_dtype=torch.int4,
        block_size=(1, group),
        dtype=torch.float32,
        activation_quantization=torchao_intx.IntxUnpackedToInt8TensorActivationQuantization.INT8_ASYM_PER_TOKEN,
    )


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(made(Path(sys.argv[1]), int(sys.argv[3]) if len(sys.argv) > 3 else 512))
