"""The monitor, by its documented name."""

from torchqat.training.monitor import Monitor as Monitor
