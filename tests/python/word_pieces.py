"""A WordPiece tokenizer of the few words of a test, as BERT's."""

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PIECES = ("the", "quick", "fox", "##es", "##s", "run", "##ning", "cafe", "é", ",", "3", "##4", "Fox", "a", "b", "##c")
TEXTS = ("The quick foxes, running", "café 34", "a foxs zebra", "RUNNING", "bc abc")


def word_pieces(lowercase=True, strip_accents=None, **normalizer):
    """A tokenizer of transformers with some 20 tokens."""
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *PIECES))}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents, **normalizer)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)
