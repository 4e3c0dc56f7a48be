"""How checkpoints are laid out on disk. What a format can hold, and the tensors of a layer, are C++ (``qat/checkpoint/formats``)."""
