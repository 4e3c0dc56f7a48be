"""How checkpoints are laid out on disk. What a format holds, and a layer's tensors, are C++ (``qat/checkpoint/formats``)."""
