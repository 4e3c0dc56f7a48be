"""What llama.cpp computes whatever a file says, by architecture; models that differ in it are refused by its name."""

from typing import Any

from torchqat.checkpoints.formats.llama_cpp.architecture import Fixed
from torchqat.errors import UserError

_GELU = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")
_SILU = ("silu", "swish")


def check_fixed(config: Any, fixed: tuple[Fixed, ...]) -> None:
    """Whether a model of ``config`` computes what llama.cpp does.

    Raises:
        UserError: It does not.
    """
    for fact in fixed:
        if not fact.holds(config):
            raise UserError(
                f"gguf takes a {config.model_type} whose {fact.name} is {fact.must}, as llama.cpp computes it, but this "
                f"one's is {getattr(config, fact.name, None)}."
            )


def is_value(name: str, *allowed: Any) -> Fixed:
    """That the key ``name`` is one of ``allowed``; a configuration that lacks it has the first."""
    said = " or ".join(str(value).lower() if isinstance(value, bool | None) else str(value) for value in allowed)
    return Fixed(name, said, lambda config: getattr(config, name, allowed[0]) in allowed)


def _head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _scale_of_gemma(layers_of_27b: int) -> Fixed:
    def holds(config: Any) -> bool:
        by_width = config.num_hidden_layers == layers_of_27b
        size = config.hidden_size // config.num_attention_heads if by_width else _head_size(config)
        return config.query_pre_attn_scalar == size

    must = f"head_dim (hidden_size / num_attention_heads where there are {layers_of_27b} layers)"
    return Fixed("query_pre_attn_scalar", must, holds)


def _whole_heads(config: Any) -> bool:
    return _head_size(config) * config.num_attention_heads == config.hidden_size


SILU = is_value("hidden_act", *_SILU)
GEMMA = (is_value("hidden_activation", *_GELU[::-1], None), is_value("tie_word_embeddings", True))
NO_BIAS = is_value("attention_bias", False, None)
WHOLE_HEADS = Fixed("head_dim", "hidden_size / num_attention_heads", _whole_heads)
UNTIED = is_value("tie_word_embeddings", False)
EXPERTS_EVERYWHERE = (
    Fixed("mlp_only_layers", "empty", lambda config: not getattr(config, "mlp_only_layers", None)),
    is_value("decoder_sparse_step", 1),
)
SHARES_SUM = is_value("norm_topk_prob", True)
SHARES_AS_THEY_ARE = is_value("norm_topk_prob", False)

GEMMA2 = (
    *GEMMA,
    _scale_of_gemma(46),
    Fixed("attn_logit_softcapping", "a number", lambda config: bool(config.attn_logit_softcapping)),
    Fixed("final_logit_softcapping", "a number", lambda config: bool(config.final_logit_softcapping)),
    is_value("attention_bias", False),
)
GEMMA3 = (
    GEMMA[0],
    _scale_of_gemma(62),
    Fixed("attn_logit_softcapping", "none", lambda config: not config.attn_logit_softcapping),
    is_value("use_bidirectional_attention", False, None),
    is_value("attention_bias", False),
)
PHI3 = (SILU, WHOLE_HEADS)
SMOLLM3 = (
    SILU,
    NO_BIAS,
    Fixed(
        "no_rope_layers",
        "0 in every fourth place and 1 elsewhere",
        lambda config: (
            [bool(one) for one in config.no_rope_layers] == [(i + 1) % 4 != 0 for i in range(config.num_hidden_layers)]
        ),
    ),
)
QWEN2_MOE = (SILU, WHOLE_HEADS, UNTIED, SHARES_AS_THEY_ARE, *EXPERTS_EVERYWHERE)
OLMOE = (
    SILU,
    WHOLE_HEADS,
    UNTIED,
    NO_BIAS,
    SHARES_AS_THEY_ARE,
    is_value("clip_qkv", None),
    Fixed(
        "num_key_value_heads",
        "num_attention_heads",
        lambda config: config.num_key_value_heads == config.num_attention_heads,
    ),
)
OLMO2 = (SILU, WHOLE_HEADS, UNTIED, NO_BIAS)
GPT_OSS = (SILU, UNTIED, is_value("swiglu_alpha", 1.702), is_value("swiglu_limit", 7.0))
GRANITE = (SILU, WHOLE_HEADS)
GLM4 = (SILU,)
STARCODER2 = (
    is_value("hidden_act", *_GELU[::-1]),
    WHOLE_HEADS,
    is_value("use_bias", True),
    is_value("mlp_type", "default"),
    is_value("norm_type", "layer_norm"),
)
GPT2 = (
    is_value("activation_function", *_GELU[::-1]),
    is_value("scale_attn_weights", True),
    is_value("scale_attn_by_inverse_layer_idx", False),
    is_value("add_cross_attention", False),
)
FALCON = (
    is_value("activation", *_GELU),
    is_value("alibi", False, None),
    is_value("bias", False, None),
    Fixed("parallel_attn", "true", lambda config: bool(config.parallel_attn or config.new_decoder_architecture)),
)
BERT = (
    is_value("hidden_act", *_GELU),
    is_value("position_embedding_type", "absolute"),
    is_value("is_decoder", False),
    is_value("add_cross_attention", False),
)
