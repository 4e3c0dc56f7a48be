"""Text, split by llama.cpp as by the tokenizer that a GGUF file was written of."""

import pytest
import torchqat
from engine_models import IN_EIGHT_BITS, needs, prepared
from sentencepiece_like import sentencepiece_like
from torchqat.verification.engines import ENGINES, Question


def _split_by(kind, vocabulary, documents):
    """A byte-level BPE tokenizer, made from text, that splits it as llama.cpp's pre-tokenizer ``kind`` does."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from torchqat.checkpoints.formats.llama_cpp.pre_tokenizers import PATTERNS
    from transformers import PreTrainedTokenizerFast

    octets = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "falcon")
    if kind == "falcon":
        parts = [pre_tokenizers.Punctuation("contiguous"), octets, pre_tokenizers.Digits(False)]
        parts.append(pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"))
    else:
        pattern = next(pattern for (pattern, _), name in PATTERNS.items() if name == kind)
        parts = [pre_tokenizers.Split(Regex(pattern), "isolated"), octets]
    whole = kind in ("llama-bpe", "tekken")
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence(parts), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>")


@pytest.mark.parametrize(
    "kind", ("byte level", "sentencepiece", "llama-bpe", "dbrx", "qwen2", "gpt-4o", "tekken", "falcon")
)
def test_llama_cpp_splits_text_as_the_tokenizer_does(kind, trained, quickstart, prompts, tmp_path):
    needs("llama.cpp")
    model, tokenizer = trained("llama")
    if kind == "sentencepiece":
        tokenizer = sentencepiece_like(model.config.vocab_size, quickstart.corpus.train[:40])
    elif kind != "byte level":
        tokenizer = _split_by(kind, model.config.vocab_size, quickstart.corpus.train[:40])
    folder = torchqat.export(prepared(model, IN_EIGHT_BITS, "", "", prompts), tmp_path / "out", "gguf", tokenizer)
    texts = [document[:2000] for document in quickstart.corpus.held_out[:20]]
    asked = Question(str(folder), [], texts=texts, context=2048)
    served = ENGINES["llama.cpp"].serve("gguf", asked)
    wrong = [text for text, found in zip(texts, served.tokens, strict=True) if found != tokenizer(text).input_ids]
    assert not wrong, f"{len(wrong)} of {len(texts)} texts, the first {wrong[0][:200]!r}"
