"""The experts of a mixture, each rounded on the tokens that its router sends to it."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchqat._library import FLOAT, Initialize, InputStatistics
from torchqat.layers.expert import Expert
from torchqat.layers.experts import QuantExperts
from torchqat.model.blocks import hooks
from torchqat.ptq.blocks import Block
from torchqat.ptq.result import Calibration
from torchqat.ptq.rounding import round_layer


@torch.no_grad()
def round_experts(block: Block, hidden: list, settings: Initialize, result: Calibration) -> bool:
    """Round the experts in ``block``, after its other layers: what takes tokens first, then what takes what that gives.

    An expert that fewer tokens reach than it has features also learns from tokens that went elsewhere, evenly spread over
    the calibration data, so that each has as many; a note says of how many experts that is true.

    Args:
        block: Its other layers rounded.
        hidden: What enters it, per batch.
        settings: The recipe's ``initialize``.
        result: Where losses and notes go.

    Returns:
        Whether there are some.
    """
    held: dict[nn.Module, list[tuple[str, QuantExperts]]] = {}
    for name, layer in block.own_layers():
        if isinstance(layer, QuantExperts) and layer.weight_bits != FLOAT:
            held.setdefault(layer.holder, []).append((name, layer))
    for holder, layers in held.items():
        tokens = RoutedTokens.of(block, holder, hidden)
        if tokens is None:
            result.unrouted += [name for name, _ in layers]
            continue
        for name, layer in layers:
            _round(name, layer, tokens, settings, result)
    return bool(held)


def _round(name: str, layer: QuantExperts, tokens: "RoutedTokens", settings: Initialize, result: Calibration) -> None:
    features, losses, few = layer.matrix_shape[1], [], 0
    for index in range(layer.count):
        own, lent = tokens.of_expert(index, features)
        few += lent > 0
        statistics = InputStatistics(features)
        for part in tokens.inputs(layer, index, own):
            statistics.add(part)
        loss, warning = round_layer(Expert(layer, index), statistics, settings)
        losses.append(loss)
        if warning:
            result.warnings.append(f"{name}, expert {index}: {warning}.")
    result.losses[name], result.tokens[name] = sum(losses), tokens.count
    if few:
        result.warnings.append(
            f"{name}: {few} of {layer.count} experts were reached by fewer than {features} calibration tokens, so they also "
            "learn from tokens that went to others; raise data.calibration.samples."
        )


class RoutedTokens:
    """What a module of experts was given in calibration, and how it goes on from there.

    Attributes:
        count: How many tokens in all.
    """

    def __init__(self, holder: nn.Module, given: Tensor, sent: Tensor):
        self._holder, self._given, self._sent = holder, given, sent
        self.count = given.shape[0]

    @classmethod
    def of(cls, block: Block, holder: nn.Module, hidden: list) -> "RoutedTokens | None":
        """Those of all batches; ``None`` where the module is not called with tokens and the experts of each."""
        calls: list[tuple[Tensor, Tensor]] = []
        known = True

        def keep(_module: nn.Module, args: tuple) -> None:
            nonlocal known
            known = known and len(args) > 1 and routes(args[0], args[1])
            if known:
                calls.append((args[0].detach().flatten(0, -2), args[1].detach().flatten(0, -2)))

        with hooks([holder.register_forward_pre_hook(keep)]):
            for index, batch in enumerate(hidden):
                block.run(index, batch)
        if not known or not calls:
            return None
        found = cls(holder, torch.cat([given for given, _ in calls]), torch.cat([sent for _, sent in calls]))
        return found if found._computes_as(block, hidden) else None

    def of_expert(self, index: int, wanted: int) -> tuple[Tensor, int]:
        """The places of its tokens; and how many there are of others, where its own are fewer than ``wanted``."""
        own = (self._sent == index).any(-1).nonzero().squeeze(-1)
        lent = min(max(0, wanted - own.numel()), self.count - own.numel())
        if not lent:
            return own, 0
        others = (self._sent != index).all(-1).nonzero().squeeze(-1)
        spread = torch.linspace(0, others.numel() - 1, lent, device=others.device).round().long()
        return torch.cat([own, others[spread]]), lent

    def inputs(self, layer: QuantExperts, index: int, places: Tensor) -> Iterator[Tensor]:
        """What the matrix of expert ``index`` is multiplied with, for tokens at ``places``, a few thousand at once."""
        for part in places.split(4096):
            given = self._given[part].to(layer.weight.dtype)
            yield given if not _takes_result(layer) else self._between(index, given)

    def _between(self, index: int, given: Tensor) -> Tensor:
        """What an expert makes of its tokens before its last matrix, its first ones rounded as they are now."""
        holder = self._holder
        leaf = "gate_up_proj" if holder.has_gate else "up_proj"
        made = F.linear(given, _matrix(holder, leaf, index), _bias(holder, leaf, index))
        return holder._apply_gate(made) if holder.has_gate else holder.act_fn(made)

    def _computes_as(self, block: Block, hidden: list) -> bool:
        """Whether this is how the module computes: tried on the tokens of the first batch, expert by expert."""
        seen: list[tuple[tuple, Tensor]] = []
        if not knows_structure(self._holder):
            return False
        watch = self._holder.register_forward_hook(lambda _module, args, output: seen.append((args, output)))
        with hooks([watch]):
            block.run(0, hidden[0])
        (given, sent, weights, *_), wanted = seen[0]
        return self.computes(given, sent, weights, wanted)

    def computes(self, given: Tensor, sent: Tensor, weights: Tensor, wanted: Tensor) -> bool:
        """Whether its experts, one by one, make ``wanted`` of tokens ``given`` that are ``sent`` to them by ``weights``."""
        holder = self._holder
        given, sent, weights = given.flatten(0, -2), sent.flatten(0, -2), weights.flatten(0, -2)
        found = torch.zeros_like(given)
        for index in range(holder.down_proj.shape[0]):
            rows, places = (sent == index).nonzero(as_tuple=True)
            if rows.numel():
                out = F.linear(
                    self._between(index, given[rows]),
                    _matrix(holder, "down_proj", index),
                    _bias(holder, "down_proj", index),
                )
                if getattr(holder, "has_post_expert_norm", False):
                    out = holder.post_expert_norm(out)
                found.index_add_(0, rows, (out * weights[rows, places, None]).to(found.dtype))
        far = (found - wanted.flatten(0, -2)).norm()
        return bool(far <= 1e-2 * wanted.norm())


def knows_structure(holder: nn.Module) -> bool:
    """Whether ``holder`` says how its experts are laid out, as transformers' do."""
    return all(hasattr(holder, name) for name in ("has_gate", "has_bias", "is_transposed", "down_proj"))


def routes(given: object, sent: object) -> bool:
    """Whether ``sent`` says where each token of ``given`` goes: whole numbers, some a token."""
    is_tensor = isinstance(given, Tensor) and isinstance(sent, Tensor)
    return is_tensor and not sent.is_floating_point() and given.shape[:-1] == sent.shape[:-1]


def _takes_result(layer: QuantExperts) -> bool:
    return layer.leaf.startswith("down")


def _matrix(holder: nn.Module, leaf: str, index: int) -> Tensor:
    """``[out, in]``, rounded where it is."""
    for layer in holder.modules():
        if isinstance(layer, QuantExperts) and layer.leaf == leaf and layer.rounds:
            return Expert(layer, index).quantized_weight()
    weight = getattr(holder, leaf)[index]
    return weight.t() if holder.is_transposed else weight


def _bias(holder: nn.Module, leaf: str, index: int) -> Tensor | None:
    return getattr(holder, f"{leaf}_bias")[index] if holder.has_bias else None
