"""The losses, by their documented name."""

from torchqat.kinds.losses import cross_entropy as cross_entropy
from torchqat.kinds.losses import forward_kl as forward_kl
