"""Encoders with a decoder: what is written of a text or a sound, each token predicted from that and those before it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchqat._library import DistillSection, Recipe
from torchqat.data.batch import Batch, to_device
from torchqat.data.batches import Data, spread_batches
from torchqat.data.corpus import trained_and_held_out
from torchqat.data.examples import NO_LABEL, Examples
from torchqat.data.tasks import Task
from torchqat.data.written import decoder_inputs_of, sounds_with_texts, texts_with_targets
from torchqat.device import device_of
from torchqat.errors import UserError, first_line
from torchqat.extras import needs
from torchqat.kinds.kind import Answers, Kind, check_one_path, distilled
from torchqat.kinds.losses import cross_entropy_of
from torchqat.model.completeness import Wanted
from torchqat.model.loader import SEQ2SEQ, seq2seq_loader
from torchqat.model.loading import configuration_of, load_pretrained, load_tokenizer, no_note

_WHAT = "encoder with a decoder"
# Each prediction has a probability for each token of the vocabulary.
_EXAMPLES_AT_ONCE = 8


class Seq2Seq(Kind):
    """Logits ``[rows, written, vocabulary]`` of batches by name: inputs of the encoder, ``decoder_input_ids``, ``labels``.

    Labels are int64 ``[rows, written]``, -100 after the end of each row, which counts in no figure and no loss.
    """

    name = "seq2seq"
    measured_names = ("decoder_input_ids", "labels")

    def load(self, path: str, dtype: str, note: Callable[[str], None] = no_note) -> nn.Module:
        loader = seq2seq_loader(configuration_of(path, _WHAT), path)
        return load_pretrained(path, dtype, Wanted(loader, _WHAT), note)

    def load_tokenizer(self, path: str) -> Any:
        return load_tokenizer(path)

    def load_data(self, recipe: Recipe, tokenizer: Any, say: Callable[[str], None] = no_note) -> Data:
        check_one_path(recipe, self.name)

        def read(source: str, length: int) -> Examples:
            return _examples(source, recipe.model.path, length, tokenizer)

        return Data.of_examples(recipe, *trained_and_held_out(recipe, read), _EXAMPLES_AT_ONCE)

    def measured(self, source: str, path: str, length: int, tokenizer: Any, samples: int = 0) -> list[Batch]:
        return spread_batches(_examples(source, path, length, tokenizer), samples, _EXAMPLES_AT_ONCE)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(**self.examples(batch), use_cache=False).logits

    def answers(self, outputs: Tensor, batch: Batch) -> Answers:
        labels = batch["labels"]
        return Answers(outputs, labels.clamp(min=0), counted=labels != NO_LABEL)

    def loss(self, settings: DistillSection, student: Tensor, teacher: Tensor | None, batch: Batch) -> Tensor:
        labels = batch["labels"]
        return distilled(settings, student, teacher, lambda: cross_entropy_of(student, labels), labels != NO_LABEL)

    def examples(self, batch: Batch) -> Batch:
        return {name: tensor for name, tensor in batch.items() if name != "labels"}

    def own_task(self, data: Data) -> Task:
        """The share of each held-out text's tokens that are the likeliest after those before them."""

        def right(model: nn.Module, _tokenizer: Any) -> list[float]:
            device, found = device_of(model), []
            for batch in data.evaluation:
                batch = to_device(batch, device)
                counts = batch["labels"] != NO_LABEL
                hits = (self.outputs(model, batch).argmax(-1) == batch["labels"]) & counts
                found += (hits.sum(-1) / counts.sum(-1)).tolist()
            return found

        return Task("token_accuracy", function=right)


def _examples(source: str, path: str, length: int, tokenizer: Any) -> Examples:
    if not source.endswith(".jsonl") or not Path(source).is_file():
        raise UserError(f"data must be a jsonl file for a model of kind seq2seq, but is {source}.")
    import transformers

    config = configuration_of(path, _WHAT)
    loader = seq2seq_loader(config, path)
    with torch.device("meta"):
        model = getattr(transformers, loader).from_config(config)
    start, shift = getattr(config, "decoder_start_token_id", None), decoder_inputs_of(model)
    if SEQ2SEQ[loader] == "text":
        return texts_with_targets(Path(source), tokenizer, length, start, shift)
    return sounds_with_texts(Path(source), tokenizer, _extractor(path), length, start, shift)


def _extractor(path: str) -> Any:
    with needs("hf", "Loading a feature extractor"):
        from transformers import AutoFeatureExtractor

    try:
        return AutoFeatureExtractor.from_pretrained(path, trust_remote_code=False)
    except Exception as error:
        raise UserError(
            f"{path} must have a feature extractor that transformers can load, but {first_line(error)}"
        ) from error
