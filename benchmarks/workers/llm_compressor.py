"""llm-compressor on a model, in an environment of its own. See ``common.py`` beside this file for how it is called."""

import time

from common import load, main


def dataset(rows):
    from datasets import Dataset

    return Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})


def quantize(folder: str, rows: list[list[int]], bits: int, group: int, method: str):
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier

    assert method == "gptq", "its AWQ needs an accelerator"
    model = load(folder)
    weights = QuantizationArgs(num_bits=bits, type="int", symmetric=True, strategy="group", group_size=group)
    recipe = GPTQModifier(
        config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=weights)},
        ignore=["lm_head", "re:.*pooler.*"],
    )
    data = dataset(rows)
    begun = time.monotonic()
    oneshot(model=model, dataset=data, recipe=recipe, num_calibration_samples=len(data), max_seq_length=len(rows[0]))
    seconds = time.monotonic() - begun
    return {
        name: tensor for name, tensor in model.state_dict().items() if not name.endswith(("_scale", "_zero_point"))
    }, seconds


if __name__ == "__main__":
    main(quantize)
