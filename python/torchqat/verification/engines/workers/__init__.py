"""What runs inside an engine's own environment: nothing here may import torchqat, which need not be installed there."""
