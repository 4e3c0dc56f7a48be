"""A GGUF file of a model that is never whole: its header first, by the plan, then block by block, each read back."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from torchqat._library import Plan, QuantizedWeights
from torchqat.checkpoints.convert import convert_layer, convert_layers
from torchqat.checkpoints.formats.gguf import GgufWriter, write_modelfile
from torchqat.checkpoints.formats.tensors import checkpoint_plan, float_tensors
from torchqat.checkpoints.readers.gguf import GgufFile, gguf_files, tensors_of_model
from torchqat.data.batch import digest
from torchqat.errors import UserError
from torchqat.layers.experts import QuantExperts
from torchqat.layers.prepared import weight_name
from torchqat.layers.quant_layer import QuantLayer
from torchqat.ptq.block import Block
from torchqat.runs.stream_writer import Streamed, Written
from torchqat.verification.rope_gguf import rope_factors
from torchqat.verification.unquantized_gguf import as_stored


class Reader(Protocol):
    """Tensors by their names in the model."""

    def __getitem__(self, name: str) -> torch.Tensor: ...


class GgufStreamWriter(Written):
    """The file, or its parts where it is large, which become those that ``export`` writes of the whole model.

    Args:
        model: Without weights, but for those of layers outside the blocks that are quantized.
        plan: What becomes of its layers.
        folder: Where the file goes.
        reader: Gives what lies outside the blocks and stays unquantized, by its name in the model.
        tokenizer: As ``export`` takes it.
        options: ``embeddings``, ``max_shard_size``, ``pooling`` and ``ternary``, as ``export`` takes them.
    """

    def __init__(self, model: nn.Module, plan: Plan, folder: Path, reader: Reader, tokenizer, **options: Any):
        super().__init__(model, plan, folder, "gguf")
        self.reader, self.tokenizer = reader, tokenizer
        if hasattr(model, "tie_weights"):
            model.tie_weights()  # which an outline is made without
        self.writer = GgufWriter(model, self.plan, folder / "model.gguf", tokenizer, **options)
        self.writer.flush()
        self.read_back = GgufFile(gguf_files(folder))
        # Now: what is shared is no longer one when its modules were emptied.
        self.names = list(model.state_dict())
        self.floats = {name: tensor.dtype for name, tensor in float_tensors(model, self.plan)}

    @torch.no_grad()
    def add_block(self, block: Block) -> None:
        prefix = block.name + "."
        floats = {prefix + name: t for name, t in float_tensors(block.module, checkpoint_plan(block.module))}
        for name, tensor in floats.items():
            self.writer.add_float(name, tensor)
        layers = {name: layer for name, layer in block.layers() if layer.weight_spec is not None}
        self._add_layers(layers, convert_layers(block.module, self.format.dtype, prefix), prefix, floats)

    @torch.no_grad()
    def add_layer_alone(self, name: str, layer: QuantLayer) -> None:
        """One outside the blocks."""
        if name != self.writer.left_out:
            self._add_layers({name: layer}, [convert_layer(name, layer, self.format.dtype)], f"{name}.", {})

    def _add_layers(
        self,
        layers: dict[str, QuantLayer],
        converted: Iterable[QuantizedWeights],
        prefix: str,
        floats: dict[str, torch.Tensor],
    ) -> None:
        """Those ``converted``, and read back what the file now has under ``prefix``, with ``floats`` that are there."""
        expected = {}
        for layer in converted:
            self.writer.add_layer(layer)
            self.count(layer)
            expected[weight_name(layer.name, layers[layer.name])] = layer
        self.writer.flush()
        stored = as_stored(self.read_back, floats)
        for name, values, _ in tensors_of_model(self.read_back, self.names, inside=prefix):
            if name in expected:
                _compare(layers[expected[name].name], expected[name], values)
                del expected[name]
            elif name in stored:
                _compare_float(name, stored[name], values)
            else:
                continue  # of a layer outside the blocks, a bias, which is not there yet
            self.digests[name] = digest(values).hex()
        self.read_back.forget()
        if expected:
            raise UserError(f"{min(expected)} is not in the file that it was written to.")

    def add_rest(self, blocks: list[str]) -> None:
        """What lies outside the blocks, as it is. Nothing that the model has no place for has one in the file."""
        inside = tuple(name + "." for name in blocks)
        rest = [name for name in self.writer.floats if not name.startswith(inside)]
        for name in rest:
            self.writer.add_float(name, self.reader[name].to(self.floats[name]))
        self.writer.flush()
        ropes = rope_factors(self.read_back, self.model)
        for name, values, _ in tensors_of_model(self.read_back, self.names):
            if name.startswith(inside) or name in self.digests:
                continue
            if name in ropes:
                _compare_float(name, ropes[name], values)
            elif name in self.floats:
                tensor = self.reader[name].to(self.floats[name])
                _compare_float(name, as_stored(self.read_back, {name: tensor})[name], values)
            self.digests[name] = digest(values).hex()

    def finish(self) -> Streamed:
        self.writer.finish()
        write_modelfile(self.model, self.folder / "model.gguf", self.tokenizer)
        return self.result(self.writer.bytes)


def _compare(layer: QuantLayer, stored: QuantizedWeights, found: torch.Tensor) -> None:
    expected = layer.quantized_weight()
    exact = stored.dequantize(found.dtype)
    if isinstance(layer, QuantExperts):
        exact = layer.shaped(exact)
    if not torch.equal(stored.dequantize(expected.dtype), expected) or not torch.equal(found, exact):
        raise UserError(f"{stored.name} does not read back as it was rounded.")


def _compare_float(name: str, stored: torch.Tensor, found: torch.Tensor) -> None:
    if found.numel() != stored.numel() or not torch.equal(found.reshape(stored.shape), stored):
        raise UserError(f"{name} does not read back as it was written.")
