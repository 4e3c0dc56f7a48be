"""Ollama's Modelfile beside a GGUF file: what runs, how a conversation becomes text, and where an answer ends.

Grammar and template language as in Ollama's ``parser/parser.go`` and ``template/template.go``.
"""

from dataclasses import astuple, dataclass
from typing import Any

from torchqat.errors import first_line

FILE = "Modelfile"
# What Ollama keeps of a text by itself.
_CONTEXT = 4096
# In the place of what people say: nothing that a chat template looks for.
_SYSTEM, _USER, _ASSISTANT, _NEXT = "qq-system-qq", "qq-user-qq", "qq-assistant-qq", "qq-next-qq"


@dataclass(frozen=True)
class Turns:
    """A chat template as what stands before and after each message.

    Attributes:
        head: Before the first turn, where there is no system message.
        system: Before and after one, what comes first included.
        user: Before and after a user's message.
        assistant: Before and after an answer.
        answer: Before the answer that is asked for.
    """

    head: str
    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    answer: str

    def text(self, messages: list[dict[str, str]]) -> str:
        """A conversation, as ``template`` has Ollama write it."""
        parts = [] if messages[0]["role"] == "system" else [self.head]
        for message in messages:
            before, after = getattr(self, message["role"])
            parts.append(before + message["content"] + after)
        return "".join([*parts, self.answer])

    def template(self) -> str:
        """The same in the language of Ollama's templates."""
        system, user, assistant = (f"{a}{{{{ {{0}} }}}}{b}" for a, b in (self.system, self.user, self.assistant))
        return (
            f"{{{{ if .System }}}}{system.replace('{0}', '.System')}{{{{ else }}}}{self.head}{{{{ end }}}}"
            f'{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{user.replace("{0}", ".Content")}'
            f'{{{{ else if eq .Role "assistant" }}}}{assistant.replace("{0}", ".Content")}{{{{ end }}}}{{{{ end }}}}'
            f"{self.answer}"
        )


def modelfile(file: str, context: int, tokenizer: Any, ends: list[int]) -> str:
    """The text of a Modelfile.

    Args:
        file: The GGUF file, which lies beside it.
        context: Tokens that the model takes.
        tokenizer: What is in the file.
        ends: Ids of the tokens at which the model ends an answer, beside the tokenizer's own.
    """
    lines = ["# ollama create NAME -f Modelfile", f"FROM ./{file}"]
    try:
        lines.append(f'TEMPLATE """{turns_of(tokenizer).template()}"""')
    except ValueError as error:
        lines.append(
            f"# No TEMPLATE, because {error}: Ollama takes the nearest that it knows to the chat template in the file."
        )
    ids = dict.fromkeys(index for index in (tokenizer.eos_token_id, *ends) if index is not None)
    for token in tokenizer.convert_ids_to_tokens(list(ids)):
        lines.append(f'PARAMETER stop """{token}"""')
    lines.append(f"PARAMETER num_ctx {min(context, _CONTEXT)}")
    return "\n".join(lines) + "\n"


def turns_of(tokenizer: Any) -> Turns:
    """The chat template of ``tokenizer``, taken apart.

    Raises:
        ValueError: It does more than to put text around messages, in words that follow "because".
    """
    found = getattr(tokenizer, "chat_template", None)
    if not found:
        raise ValueError("the tokenizer has no chat template")
    if "strftime_now" in str(found):
        raise ValueError("the chat template tells the date")
    turns = _without_bos(_taken_apart(tokenizer), tokenizer)
    begin = _bos(tokenizer)
    for conversation in _conversations():
        if begin + turns.text(conversation) != _render(tokenizer, conversation, True):
            raise ValueError("the chat template does more than to put text around messages")
    for piece in astuple(turns):
        text = "".join(piece)
        if any(sign in text for sign in ("{{", "}}", '"')) or not all(c.isprintable() or c in "\n\t" for c in text):
            raise ValueError("the chat template has signs that a Modelfile cannot have")
    return turns


def _taken_apart(tokenizer: Any) -> Turns:
    user, answer = _message("user", _USER), _message("assistant", _ASSISTANT)
    once = _render(tokenizer, [user], False)
    head_and_user, after_user = _split(once, _USER)
    _, rest = _split(_render(tokenizer, [user, answer], False), _USER)
    before_answer, after_answer = _split(_without_start(rest, after_user), _ASSISTANT)
    _, rest = _split(_render(tokenizer, [user, answer, _message("user", _NEXT)], False), _ASSISTANT)
    before_user, _ = _split(_without_start(rest, after_answer), _NEXT)
    before_system, rest = _split(_render(tokenizer, [_message("system", _SYSTEM), user], False), _SYSTEM)
    after_system, _ = _split(rest, _USER)
    return Turns(
        _without_end(head_and_user, before_user),
        (before_system, _without_end(after_system, before_user)),
        (before_user, after_user),
        (before_answer, after_answer),
        _without_start(_render(tokenizer, [user], True), once),
    )


def _conversations() -> list[list[dict[str, str]]]:
    """Of every order of roles, of several lines, and with spaces at the ends, which some templates take away."""
    said = [_message("user", " one\ntwo "), _message("assistant", " three "), _message("user", "four")]
    system = _message("system", " five\n\nsix ")
    return [said[:1], said, [system, *said[:1]], [system, *said]]


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _render(tokenizer: Any, messages: list[dict[str, str]], asks: bool) -> str:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)
    except Exception as error:  # whatever a template raises
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(f"the chat template takes no conversation of {roles} ({first_line(error)})") from error


def _bos(tokenizer: Any) -> str:
    """What llama.cpp puts before every text by itself, as the file tells it."""
    first = tokenizer("a").input_ids[:1]
    return tokenizer.bos_token if tokenizer.bos_token is not None and first == [tokenizer.bos_token_id] else ""


def _without_bos(turns: Turns, tokenizer: Any) -> Turns:
    begin, (before, after) = _bos(tokenizer), turns.system
    found = (_without_start(turns.head, begin), (_without_start(before, begin), after))
    return Turns(*found, turns.user, turns.assistant, turns.answer)


def _split(text: str, mark: str) -> tuple[str, str]:
    before, found, after = text.partition(mark)
    if not found:
        raise ValueError("the chat template leaves messages out")
    return before, after


def _without_start(text: str, start: str) -> str:
    if not text.startswith(start):
        raise ValueError("the chat template writes a message otherwise where others follow")
    return text[len(start) :]


def _without_end(text: str, end: str) -> str:
    if not text.endswith(end):
        raise ValueError("the chat template writes a user's message otherwise where it is the first")
    return text[: len(text) - len(end)]
