"""``QuantEmbedding``: ``nn.Embedding`` with quantized entries."""

import torch.nn.functional as F
from torch import Tensor, nn

from torchqat.layers.quant_layer import QuantLayer


class QuantEmbedding(QuantLayer, nn.Embedding):
    """``nn.Embedding`` with fake quantization of its weight ``[entries, dim]``; each entry is a row.

    ``prepare`` puts it in the place of a layer, whose parameters it shares. Ids of any shape give ``[..., dim]``.
    Where scales, inner and outer, are those of rows or groups in rows, only the entries that a batch asks for are quantized.
    """

    kind = "Embedding"
    _settings = (
        "num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse",
    )  # fmt: skip
    rounds_shards = False

    def forward(self, ids: Tensor) -> Tensor:
        self._observe(ids)
        by_row = self.weight_spec is not None and self.weight_spec.scales_by_row
        if not by_row or self.frozen_codes is not None:
            return self._entries(ids, self.quantized_weight())
        entries = self._entries(ids, self.master).flatten(0, -2)
        parameters = [None if p is None else p.index_select(0, ids.flatten()) for p in self._weight_parameters()]
        return self._weight_quantizer(entries, *parameters).view(*ids.shape, -1)

    def _entries(self, ids: Tensor, weight: Tensor) -> Tensor:
        return F.embedding(
            ids, weight, self.padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse
        )

    @property
    def multiplies_rows(self) -> bool:
        return False
