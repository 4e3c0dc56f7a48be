"""llm-compressor's NVFP4 and MXFP4 on a model, in an environment of its own. See ``formats.py`` beside this file.

Its GPTQ where it takes the format; the model that is judged is the one that it leaves in memory, with its own fake
quantization of weights and inputs.
"""

from formats import main

SCHEMES = {"nvfp4": "NVFP4A16", "mxfp4": "MXFP4A16", "nvfp4:nvfp4": "NVFP4", "mxfp4:mxfp4": "MXFP4"}


def quantize(model, rows: list[list[int]], weights: str, inputs: str):
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier

    scheme = SCHEMES[":".join(filter(None, (weights, inputs)))]
    recipe = GPTQModifier(targets="Linear", scheme=scheme, ignore=["lm_head"])
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
    oneshot(model=model, dataset=data, recipe=recipe, num_calibration_samples=len(data), max_seq_length=len(rows[0]))
    return model


if __name__ == "__main__":
    main(quantize)
