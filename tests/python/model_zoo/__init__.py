"""A tiny model of every type that transformers has, and what torchqat does with it."""
