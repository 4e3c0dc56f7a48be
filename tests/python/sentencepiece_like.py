"""A tokenizer like those of Llama 2 and Gemma, made from text."""

import json


def sentencepiece_like(vocabulary, documents):
    """BPE with byte fallback over text whose spaces are marked, as the tokenizers of Llama 2 and Gemma are."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    octets = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *octets]
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(documents, trainer)
    state = json.loads(tokenizer.to_str())  # the bytes are in the vocabulary, but are no special tokens
    state["added_tokens"] = [entry for entry in state["added_tokens"] if entry["content"] not in octets]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
