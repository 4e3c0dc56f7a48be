"""The small Llama that benchmarks measure on where no other model is given: recipes that ship have none of their own."""

# As ``load_recipe`` takes them. It is trained once, in minutes, and cached; a text on which it shows what rounding does.
SMALL_LLAMA = {
    "model.scratch": {
        "hidden_size": 256, "intermediate_size": 768, "vocabulary": 2048, "steps": 2000, "batch_size": 8,
        "learning_rate": 2e-2,
    },
    "data.train": "python-stdlib",
}  # fmt: skip
# The same, trained in a quarter of the steps.
QUARTER_LLAMA = {
    **SMALL_LLAMA, "model.scratch": {**SMALL_LLAMA["model.scratch"], "steps": 500, "batch_size": 4},
}  # fmt: skip
