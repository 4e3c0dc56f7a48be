"""Three tasks for a language model that need no download and are not perplexity, made of text that no training saw.

Each question is right or wrong, so that two models can be compared question by question:

- ``next_word``: prose, and which of four words of the same passage comes next;
- ``identifier``: Python, and which of four names that the passage has used comes next;
- ``instruction``: a request made of a template whose answer is checked by a rule, answered greedily in the model's own chat
  format.

Choices are words that are one token, so that a forward pass answers a question by the likelihood of each.
"""

import keyword
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from texts import code, prose

CONTEXT = 64  # tokens before a choice
ANSWER = 24  # tokens that may answer a request
TOGETHER = 40  # requests that are answered side by side
CHOICES = 4
NAMES = ("Mary", "Ahmed", "Chen", "Olga", "Pedro", "Anna", "Kofi", "Yuki")
WORDS = (
    "river",
    "stone",
    "window",
    "garden",
    "paper",
    "music",
    "winter",
    "bridge",
    "coffee",
    "mountain",
    "letter",
    "boat",
)


@dataclass(frozen=True)
class Choice:
    """Tokens, and of the tokens that may follow the one that does, first."""

    context: list[int]
    choices: list[int]


@dataclass(frozen=True)
class Request:
    """What is asked, and whether an answer is one."""

    text: str
    is_answered: Callable[[str], bool]


def choices(tokenizer, texts: list[str], is_word: Callable[[str], bool], count: int, seed: int) -> list[Choice]:
    """Questions of ``texts``, drawn evenly: what comes next, and three other words that the passage before it has."""
    draw, found = random.Random(seed), []
    passages = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    pieces: dict[int, str] = {}
    starts = [(number, at) for number, tokens in enumerate(passages) for at in range(CONTEXT, len(tokens) - 1)]
    draw.shuffle(starts)

    def piece(token: int) -> str:
        if token not in pieces:
            pieces[token] = tokenizer.decode([token])
        return pieces[token]

    def word(tokens: list[int], at: int) -> str:
        """The word that the token at ``at`` is; empty where it is a part of one, or none."""
        before, here, after = (piece(token) for token in tokens[at - 1 : at + 2])
        is_whole = not (goes_on(before[-1:]) and goes_on(here[:1])) and not goes_on(after[:1])
        return here if is_whole and is_word(here.strip()) else ""

    for number, at in starts:
        if len(found) == count:
            break
        tokens = passages[number]
        right = word(tokens, at)
        if not right:
            continue
        # As the tokenizer has it: with a space before it or without one, as the right word is.
        others = {
            tokens[place] for place in range(at - CONTEXT, at - 1)
            if (other := word(tokens, place)) and other != right and other[:1].isspace() == right[:1].isspace()
        }  # fmt: skip
        if len(others) >= CHOICES - 1:
            wrong = draw.sample(sorted(others), CHOICES - 1)
            found.append(Choice(tokens[at - CONTEXT : at], [tokens[at], *wrong]))
    if len(found) < count:
        raise ValueError(f"the texts give {len(found)} questions, and {count} were asked for")
    return found


def requests(count: int, seed: int) -> list[Request]:
    """Of each kind in turn, with other words in each."""
    draw = random.Random(seed)
    return [KINDS[number % len(KINDS)](draw) for number in range(count)]


def repeated(draw: random.Random) -> Request:
    sentence = "The {} is near the {}.".format(*draw.sample(WORDS, 2))
    return Request(f"Repeat this sentence: {sentence}", lambda answer: sentence in answer)


def owner(draw: random.Random) -> Request:
    (first, second), (own, other) = draw.sample(NAMES, 2), draw.sample(WORDS, 2)
    text = f"{first} has a {own} and {second} has a {other}. What does {second} have?"
    return Request(text, lambda answer: has(answer, other) and not has(answer, own))


def three(draw: random.Random) -> Request:
    words = draw.sample(WORDS, 3)
    return Request(
        f"Make a list of these three words: {', '.join(words)}.",
        lambda answer: all(has(answer, word) for word in words),
    )


def function(draw: random.Random) -> Request:
    name = draw.choice(WORDS)
    return Request(f"Write a Python function named '{name}'.", lambda answer: f"def {name}(" in answer)


def entry(draw: random.Random) -> Request:
    key, value = draw.choice(WORDS), draw.randint(2, 99)
    text = f"Write JSON with the key '{key}' and the value {value}."
    return Request(text, lambda answer: re.search(rf'"{key}"\s*:\s*"?{value}\b', answer) is not None)


def question(draw: random.Random) -> Request:
    word = draw.choice(WORDS)
    return Request(f"Write a question about a {word}.", lambda answer: "?" in answer and has(answer, word))


def total(draw: random.Random) -> Request:
    first, second = draw.randint(1, 9), draw.randint(1, 9)
    return Request(f"What is {first} + {second}?", lambda answer: has(answer, f"= {first + second}"))


def place(draw: random.Random) -> Request:
    thing, where = draw.sample(WORDS, 2)
    return Request(
        f"The {thing} is by the {where}. Where is the {thing}?", lambda answer: has(answer, f"by the {where}")
    )


KINDS = (repeated, owner, three, function, entry, question, total, place)


def has(answer: str, words: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", answer.lower()) is not None


class Tasks:
    """The questions for models with one tokenizer; the same for every model that is asked.

    Args:
        tokenizer: With a chat template.
        cache: Where ``texts.py`` keeps what it fetches.
        count: Questions of each task.
    """

    def __init__(self, tokenizer, cache: Path, count: int):
        self.tokenizer = tokenizer
        self.asked = {
            "next_word": choices(tokenizer, prose("held-out", cache), is_plain_word, count, 0),
            "identifier": choices(tokenizer, code("held-out"), is_name, count, 1),
            "instruction": requests(count, 2),
        }

    def answers(self, model) -> dict[str, list[float]]:
        """1 for each question that ``model`` answers right, else 0; by task."""
        return {
            name: self._answered(model, asked) if isinstance(asked[0], Request) else chosen(model, asked)
            for name, asked in self.asked.items()
        }

    @torch.no_grad()
    def _answered(self, model, asked: list[Request]) -> list[float]:
        right = []
        for some in (asked[at : at + TOGETHER] for at in range(0, len(asked), TOGETHER)):
            given = model.generate(**self._prompts(some), max_new_tokens=ANSWER, do_sample=False)
            answers = self.tokenizer.batch_decode(given[:, -ANSWER:], skip_special_tokens=True)
            right += [float(request.is_answered(answer)) for request, answer in zip(some, answers, strict=True)]
        return right

    def _prompts(self, asked: list[Request]) -> dict[str, torch.Tensor]:
        said = [[{"role": "user", "content": request.text}] for request in asked]
        texts = self.tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
        return self.tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)


def goes_on(character: str) -> bool:
    """Whether a word may have it in its middle; an empty text has none."""
    return character.isalnum() or character == "_"


def is_plain_word(word: str) -> bool:
    return word.isalpha() and word.islower() and len(word) > 2


def is_name(word: str) -> bool:
    return word.isidentifier() and len(word) > 2 and not keyword.iskeyword(word)


@torch.no_grad()
def chosen(model, asked: list[Choice]) -> list[float]:
    right = []
    for some in (asked[at : at + 16] for at in range(0, len(asked), 16)):
        logits = model(torch.tensor([question.context for question in some]), logits_to_keep=1).logits[:, -1]
        likely = logits.gather(-1, torch.tensor([question.choices for question in some]))
        right += (likely.argmax(-1) == 0).float().tolist()
    return right
