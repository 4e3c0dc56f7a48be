"""What llama.cpp makes of a model that transformers built: architectures, and the keys that its graphs are built by.

Facts are those of llama.cpp's ``src/models`` and ``src/llama-model.cpp``; names of tensors and keys are the gguf package's.
"""
