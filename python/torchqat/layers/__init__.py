"""The layers that ``prepare`` puts in the place of torch's own."""
