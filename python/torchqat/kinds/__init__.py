"""What models are for: how each kind is loaded, given data, asked, taught and measured."""

from torchqat.errors import UserError
from torchqat.kinds.causal_lm import CausalLM
from torchqat.kinds.classifier import Classifier
from torchqat.kinds.kind import Answers, Kind
from torchqat.kinds.sentence_encoder import SentenceEncoder
from torchqat.kinds.seq2seq import Seq2Seq

KINDS: dict[str, type[Kind]] = {kind.name: kind for kind in (CausalLM, Classifier, SentenceEncoder, Seq2Seq)}


def find_kind(name: str | Kind) -> Kind:
    """The kind that recipes call ``name``, or that it is.

    Raises:
        UserError: There is none.
    """
    if isinstance(name, Kind):
        return name
    if name not in KINDS:
        raise UserError(f"kind must be {', '.join(KINDS)}, but is {name}.")
    return KINDS[name]()


__all__ = ["KINDS", "Answers", "CausalLM", "Classifier", "Kind", "SentenceEncoder", "Seq2Seq", "find_kind"]
