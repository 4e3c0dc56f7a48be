"""A GGUF file of a model that is never whole: its header first, by the plan, then block by block, each read back."""

from pathlib import Path

import torch
from torch import nn

from torchqat._library import CheckpointPlan, Plan, QuantizedWeights
from torchqat.checkpoints.convert import convert_layers
from torchqat.checkpoints.export import checked_format
from torchqat.checkpoints.formats.gguf import GgufWriter, write_modelfile
from torchqat.checkpoints.formats.known import bits_per_weight
from torchqat.checkpoints.formats.tensors import checkpoint_plan, float_tensors, floating_layers
from torchqat.checkpoints.readers.gguf import GgufFile, gguf_files, tensors_of_model
from torchqat.data.batch import digest
from torchqat.errors import UserError
from torchqat.layers.experts import QuantExperts
from torchqat.layers.prepared import weight_name
from torchqat.layers.quant_layer import QuantLayer
from torchqat.model.outline import CheckpointReader
from torchqat.ptq.block import Block
from torchqat.ptq.walk import Calibration
from torchqat.runs.stream_writer import Streamed


class GgufStreamWriter:
    """The file, or its parts where it is large, which become those that ``export`` writes of the whole model."""

    def __init__(self, model: nn.Module, plan: Plan, folder: Path, reader: CheckpointReader, tokenizer):
        self.model, self.folder, self.reader, self.tokenizer = model, folder, reader, tokenizer
        self.plan = CheckpointPlan(plan.layers, floating_layers(model, plan.layers), plan.kv_cache)
        self.format = checked_format("gguf", self.plan)
        if hasattr(model, "tie_weights"):
            model.tie_weights()  # which an outline is made without
        self.writer = GgufWriter(model, self.plan, folder / "model.gguf", tokenizer)
        self.writer.flush()
        self.read_back = GgufFile(gguf_files(folder))
        self.elements, self.bits = 0, 0.0
        self.digests: dict[str, str] = {}
        # Now: what is shared is no longer one when its modules were emptied.
        self.names = list(model.state_dict())
        self.floats = {name: tensor.dtype for name, tensor in float_tensors(model, self.plan)}

    @torch.no_grad()
    def add_block(self, block: Block) -> None:
        prefix = block.name + "."
        for name, tensor in float_tensors(block.module, checkpoint_plan(block.module)):
            self.writer.add_float(prefix + name, tensor)
        expected = {}
        layers = {name: layer for name, layer in block.layers() if layer.weight_spec is not None}
        for layer in convert_layers(block.module, self.format.dtype, prefix):
            self.writer.add_layer(layer)
            self.elements += layer.codes.numel()
            self.bits += bits_per_weight("gguf", layer) * layer.codes.numel()
            expected[weight_name(layer.name, layers[layer.name])] = layer
        self.writer.flush()
        for name, values, _ in tensors_of_model(self.read_back, self.names, inside=prefix):
            if name in expected:
                _compare(layers[expected[name].name], expected[name], values)
                del expected[name]
            self.digests[name] = digest(values).hex()
        if expected:
            raise UserError(f"{min(expected)} is not in the file that it was written to.")

    def add_rest(self, blocks: list[str]) -> None:
        """What lies outside the blocks, as it is. Nothing that the model has no place for has one in the file."""
        inside = tuple(name + "." for name in blocks)
        rest = [name for name in self.writer.floats if not name.startswith(inside)]
        for name in rest:
            self.writer.add_float(name, self.reader[name].to(self.floats[name]))
        self.writer.flush()
        for name, values, _ in tensors_of_model(self.read_back, self.names):
            if not name.startswith(inside):
                self.digests[name] = digest(values).hex()

    def finish(self) -> Streamed:
        self.writer.finish()
        write_modelfile(self.model, self.folder / "model.gguf", self.tokenizer)
        bits = self.bits / self.elements
        return Streamed(self.folder, Calibration(), len(self.plan.layers), bits, self.writer.bytes, self.digests)


def _compare(layer: QuantLayer, stored: QuantizedWeights, found: torch.Tensor) -> None:
    expected = layer.quantized_weight()
    exact = stored.dequantize(found.dtype)
    if isinstance(layer, QuantExperts):
        exact = layer.shaped(exact)
    if not torch.equal(stored.dequantize(expected.dtype), expected) or not torch.equal(found, exact):
        raise UserError(f"{stored.name} does not read back as it was rounded.")
