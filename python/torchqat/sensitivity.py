"""The sensitivity of layers, by its documented name."""

from torchqat.evaluation.mixed_widths import mixed_recipe as mixed_recipe
from torchqat.evaluation.mixed_widths import mixed_widths as mixed_widths
from torchqat.evaluation.sensitivity import LayerSensitivity as LayerSensitivity
from torchqat.evaluation.sensitivity import sensitivity as sensitivity
