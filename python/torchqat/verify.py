"""``verify``: is what a stranger reads what training used?"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from torchqat.export import cache_scales
from torchqat.kv_cache import caches
from torchqat.linear import QuantLinear
from torchqat.prepare import quant_layers
from torchqat.readers import load_in_transformers, read_compressed_tensors, read_tensors


@dataclass(frozen=True)
class Verification:
    """What the comparison of a checkpoint with its training model found.

    Attributes:
        layers: Number of quantized layers compared.
        differing: Layers whose weights are not equal bit for bit, with the number of elements that differ.
        logits_difference: Largest difference of the logits on fixed prompts; ``None`` when they were not compared.
        logits_bound: What that difference may be: zero bits of the weights differ, so only the order in which a matrix
            product adds can, and that is bounded by the dtype's precision.
    """

    layers: int
    differing: dict[str, int] = field(default_factory=dict)
    logits_difference: float | None = None
    logits_bound: float | None = None

    @property
    def ok(self) -> bool:
        close = self.logits_difference is None or self.logits_difference <= self.logits_bound
        return self.layers > 0 and not self.differing and close

    def __str__(self) -> str:
        if self.differing:
            name, count = next(iter(self.differing.items()))
            return f"{len(self.differing)} of {self.layers} layers differ, the first {name} in {count} elements"
        text = f"{self.layers} layers equal bit for bit"
        if self.logits_difference is not None:
            text += f"; logits differ by at most {self.logits_difference:.3g} (bound {self.logits_bound:.3g})"
        return text


@torch.no_grad()
def verify(folder: str | Path, model: nn.Module, tokens: Tensor | None = None) -> Verification:
    """Compare the checkpoint in ``folder`` with the model that was exported to it.

    Weights are read by the compressed-tensors library and compared, bit for bit, with those that the training forward
    uses, rounded once to the dtype of the checkpoint; so are the scales of a quantized cache. For a transformers model
    whose inputs and cache are not quantized, the checkpoint is also loaded by transformers and run on fixed prompts. (With
    quantized inputs its logits say little: transformers simulates absmax / 127.5 per token, where engines and the narrow
    grid use absmax / 127.)

    Args:
        folder: What ``export`` wrote.
        model: The prepared model.
        tokens: Prompts, int64 ``[batch, sequence]``; by default 4 fixed ones of 32 tokens.

    Raises:
        UserError: The folder cannot be read.
    """
    folder = Path(folder)
    read = read_compressed_tensors(folder)
    differing: dict[str, int] = {}
    trained = {name: layer for name, layer in quant_layers(model) if layer.weight_spec is not None}
    for name, layer in trained.items():
        count = _differing(read.get(name), layer)
        if count:
            differing[name] = count
    differing.update(_differing_caches(folder, model))
    for name in read.keys() - trained.keys():
        differing[name] = read[name].numel()
    plain = all(layer.input_spec is None for layer in trained.values()) and not caches(model)
    if not hasattr(model, "config") or not plain:
        return Verification(len(trained), differing)
    difference, bound = _compare_logits(load_in_transformers(folder), model, tokens)
    return Verification(len(trained), differing, difference, bound)


def _differing(read: Tensor | None, layer: QuantLinear) -> int:
    expected = layer.quantized_weight().detach()
    if read is None or read.shape != expected.shape:
        return expected.numel()
    return int((read != expected.to(read.dtype).to(read.device)).sum())


def _differing_caches(folder: Path, model: nn.Module) -> dict[str, int]:
    """Scales of the cache of keys and values that are not those of training."""
    expected = cache_scales(model)
    found = read_tensors(folder) if expected else {}
    return {
        name: scale.numel()
        for name, scale in expected.items()
        if name not in found or not torch.equal(found[name], scale.cpu())
    }


def _compare_logits(served: nn.Module, model: nn.Module, tokens: Tensor | None) -> tuple[float, float]:
    if tokens is None:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, model.config.vocab_size, (4, 32), generator=generator)
    training = model.training
    model.eval()
    ours = model(input_ids=tokens.to(next(model.parameters()).device), use_cache=False).logits.float().cpu()
    model.train(training)
    theirs = served(input_ids=tokens, use_cache=False).logits.float()
    # The coarser of the two dtypes sets the precision of every sum.
    precision = max(torch.finfo(next(m.parameters()).dtype).eps for m in (served, model))
    return (ours - theirs).abs().max().item(), 64 * precision * ours.abs().max().item()
