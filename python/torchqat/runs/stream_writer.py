"""What is written of a model that is never whole: block by block, each read back as soon as it is on disk."""

import json
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from torchqat._library import CheckpointPlan, Plan, QuantizedWeights
from torchqat.checkpoints.convert import convert_layers
from torchqat.checkpoints.export import checked_format
from torchqat.checkpoints.formats.folder import write_configuration
from torchqat.checkpoints.formats.known import bits_per_weight
from torchqat.checkpoints.formats.naming import documents_on_disk, layer_tensors, layers_on_disk
from torchqat.checkpoints.formats.numbers import held_in
from torchqat.checkpoints.formats.shards import ShardWriter
from torchqat.checkpoints.formats.tensors import cache_scales, checkpoint_plan, float_tensors, floating_layers
from torchqat.checkpoints.formats.tokenizer_files import save_tokenizer
from torchqat.checkpoints.readers import read_layers_of
from torchqat.checkpoints.readers.reading import read_file
from torchqat.data.batch import digest
from torchqat.errors import UserError
from torchqat.model.disk_names import DiskNames
from torchqat.model.outline import CheckpointReader
from torchqat.ptq.block import Block
from torchqat.ptq.result import Calibration

# Tensors outside the blocks share a file up to this size.
_SHARD_BYTES = 1 << 28


@dataclass
class Streamed:
    """What was written.

    Attributes:
        folder: The checkpoint.
        calibration: Errors, ranges and warnings.
        layers: Number of quantized layers, each read back and equal bit for bit.
        bits_per_weight: Of the quantized layers, scales and zero points included.
        bytes: Of all tensors.
        digests: SHA-256 of each tensor's elements, in row order: of the weights of quantized layers as the forward has them,
            in the dtype in which a reader computes them, and of the rest.
    """

    folder: Path
    calibration: Calibration
    layers: int = 0
    bits_per_weight: float = 0.0
    bytes: int = 0
    digests: dict[str, str] = field(default_factory=dict)


class Written:
    """What is known of a checkpoint while it is written.

    Args:
        model: Without weights.
        plan: What becomes of its layers.
        folder: Where the checkpoint goes.
        format: The name of one that can hold it.
    """

    def __init__(self, model: nn.Module, plan: Plan, folder: Path, format: str):
        self.model, self.folder = model, folder
        self.plan = CheckpointPlan(plan.layers, floating_layers(model, plan.layers), plan.kv_cache)
        self.format = checked_format(format, self.plan)
        self.digests: dict[str, str] = {}
        self._elements, self._bits = 0, 0.0

    def count(self, layer: QuantizedWeights) -> None:
        """Note the size of a layer that is written."""
        self._elements += layer.codes.numel()
        self._bits += bits_per_weight(self.format.name, layer) * layer.codes.numel()

    def result(self, size: int) -> Streamed:
        """What was written, in ``size`` bytes."""
        bits = self._bits / self._elements
        return Streamed(self.folder, Calibration(), len(self.plan.layers), bits, size, self.digests)


class StreamWriter(Written):
    """Shards of a checkpoint, one a block, and what ties them together."""

    def __init__(
        self, model: nn.Module, plan: Plan, folder: Path, format: str, reader: CheckpointReader, tokenizer=None
    ):
        super().__init__(model, plan, folder, format)
        self.reader, self.tokenizer = reader, tokenizer
        self.names = DiskNames(model)
        self.shards = ShardWriter(folder, _SHARD_BYTES)
        beside = [name.removesuffix(".weight") for name in reader.passed_over() if len(reader.shape_of(name)) == 2]
        self.documents = documents_on_disk(model, self.plan, self.format, self.names, beside)
        self.config = json.loads(self.documents["config.json"])

    @torch.no_grad()
    def add_block(self, block: Block) -> None:
        prefix = block.name + "."
        dtype = self.format.dtype
        floats = float_tensors(block.module, checkpoint_plan(block.module), dtype)
        tensors = dict(self.names.on_disk((prefix + name, tensor) for name, tensor in floats))
        for layer in convert_layers(block.module, dtype, prefix):
            tensors.update(layer_tensors(self.model, self.format, layer, self.names))
            self.count(layer)
        scales = cache_scales(block.module, self.format.name)
        tensors.update({self.names.renamed(prefix + name): scale for name, scale in scales.items()})
        self.shards.add(tensors)
        reading = read_layers_of(self.format.name, read_file(self.shards.flush()), self.config)
        self.digests.update({name: digest(tensors[name]).hex() for name in reading.others})
        for name, layer in block.layers():
            expected = layer.quantized_weight()
            stored = layer.convert(name, torch.float32)
            if not torch.equal(stored.dequantize(expected.dtype), expected):
                raise UserError(f"{name} does not read back as it was rounded.")
            for part in layers_on_disk(self.model, self.format, stored, self.names):
                on_disk = self.names.layer(name) if part is stored else part.name
                found = reading.weights.get(on_disk)
                if found is None or not torch.equal(found, part.dequantize(found.dtype)):
                    raise UserError(f"{on_disk} does not read back as it was rounded.")
                self.digests[f"{on_disk}.weight"] = digest(found).hex()

    def add_rest(self, blocks: list[str]) -> None:
        """What lies outside the blocks, and what the model has no place for, as it is."""
        inside = tuple(name + "." for name in blocks)
        outside = (
            (name, held_in(name, self.reader[name], self.format.dtype or tensor.dtype))
            for name, tensor in self.model.state_dict().items()
            if not name.startswith(inside) and name in self.reader
        )
        passed_over = ((name, self.reader.on_disk(name)) for name in self.reader.passed_over())
        for name, tensor in chain(self.names.on_disk(outside), passed_over):
            self.shards.add({name: tensor})
            self.digests[name] = digest(tensor).hex()

    def finish(self) -> Streamed:
        self.shards.finish()
        write_configuration(self.model, self.folder, self.plan, self.documents, self.format.dtype)
        if self.tokenizer is not None:
            save_tokenizer(self.tokenizer, self.folder)
        return self.result(self.shards.bytes)
