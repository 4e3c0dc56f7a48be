"""The architectures that a GGUF file can be written for, by the type that transformers gives a model's configuration."""

from torchqat.checkpoints.formats.llama_cpp import fixed, keys
from torchqat.checkpoints.formats.llama_cpp.architecture import Architecture

_MIXTURE = (fixed.SHARES_SUM, *fixed.EXPERTS_EVERYWHERE)
_GEMMA3 = Architecture("gemma3", norm_offset=1.0, slides=True, keys=(keys.soft_caps,), fixed=fixed.GEMMA3)

ARCHITECTURES = {
    "llama": Architecture("llama", interleaved=True, scales_products=True, divides_frequencies=True),
    "mistral": Architecture("llama", interleaved=True, scales_products=True, divides_frequencies=True),
    "mixtral": Architecture("llama", interleaved=True, scales_products=True, divides_frequencies=True, fixed=_MIXTURE),
    "smollm3": Architecture("smollm3", interleaved=True, fixed=fixed.SMOLLM3),
    "granite": Architecture(
        "granite", interleaved=True, divides_frequencies=True, keys=(keys.granite_scales,), fixed=fixed.GRANITE
    ),
    "qwen2": Architecture("qwen2"),
    "qwen2_moe": Architecture("qwen2moe", keys=(keys.shared_expert,), fixed=fixed.QWEN2_MOE),
    "qwen3": Architecture("qwen3", scales_products=True),
    "qwen3_moe": Architecture("qwen3moe", scales_products=True, fixed=_MIXTURE),
    "gemma": Architecture("gemma", norm_offset=1.0),
    "gemma2": Architecture("gemma2", norm_offset=1.0, slides=True, keys=(keys.soft_caps,), fixed=fixed.GEMMA2),
    "gemma3_text": _GEMMA3,
    "gemma3": _GEMMA3,
    "phi3": Architecture("phi3", rotates_part=True, fixed=fixed.PHI3),
    "glm4": Architecture("glm4", rotates_part=True, fixed=fixed.GLM4),
    "olmo2": Architecture("olmo2", fixed=fixed.OLMO2),
    "olmoe": Architecture("olmoe", fixed=fixed.OLMOE),
    "gpt_oss": Architecture(
        "gpt-oss", slides=True, interleaved_experts=True, keys=(keys.width_of_experts,), fixed=fixed.GPT_OSS
    ),
    "starcoder2": Architecture("starcoder2", fixed=fixed.STARCODER2),
    "falcon": Architecture("falcon", keys=(keys.falcon_layout,), fixed=fixed.FALCON),
    "bert": Architecture(
        "bert", encoder="BertModel", passes_over=("pooler.",), keys=(keys.reads_both_ways,), fixed=fixed.BERT
    ),
    "gpt2": Architecture("gpt2", fixed=fixed.GPT2),
}
