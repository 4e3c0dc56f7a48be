"""What ``verify`` found, and how it says so."""

from dataclasses import dataclass, field

from torchqat.verification.engines.question import Speed


@dataclass(frozen=True)
class Agreement:
    """How an engine's answers compare with the training forward's, on the same prompts.

    Attributes:
        engine: Its name.
        kl: Mean KL from the training forward to the engine, in nats a token.
        kl_bound: What that may be.
        why: Where a difference comes from.
        top1: Share of positions at which both prefer the same token.
        overruled: Positions, in prompts and in the greedy text, at which the engine chose another token although the
            training forward preferred its own by more than ``margin``.
        margin: In nats.
        logits_difference: Largest difference of two log probabilities.
        same_text: Prompts whose greedy continuation is the same to its end.
        prompts: Of how many.
        mistokenized: Texts that the engine splits into other tokens than the tokenizer that the model was trained with.
    """

    engine: str
    kl: float
    kl_bound: float
    why: str
    top1: float
    overruled: int
    margin: float
    logits_difference: float
    same_text: int
    prompts: int
    mistokenized: int = 0

    @property
    def ok(self) -> bool:
        return self.kl <= self.kl_bound and self.overruled == 0 and self.mistokenized == 0

    def __str__(self) -> str:
        text = (
            f"in {self.engine} KL is {self.kl:.2g} (bound {self.kl_bound:g}), top-1 agreement {self.top1:.1%}, log "
            f"probabilities differ by at most {self.logits_difference:.3g}, greedy text is the same for {self.same_text} of "
            f"{self.prompts} prompts"
        )
        if self.overruled:
            text += f"; {self.overruled} choices differ that were clear by more than {self.margin:.2g} nats"
        if self.mistokenized:
            text += f"; {self.mistokenized} texts become other tokens"
        return text


@dataclass(frozen=True)
class OutputAgreement:
    """How the outputs of a module in an engine compare with the training forward's.

    Attributes:
        engine: Its name.
        difference: The largest.
        bound: What that may be.
        why: Where it comes from.
    """

    engine: str
    difference: float
    bound: float
    why: str

    @property
    def ok(self) -> bool:
        return self.difference <= self.bound

    def __str__(self) -> str:
        return f"in {self.engine} outputs differ by at most {self.difference:.2g} (bound {self.bound:.2g})"


@dataclass(frozen=True)
class Verification:
    """What the comparison of a checkpoint with its training model found.

    Attributes:
        layers: Number of quantized layers compared.
        differing: Layers and other tensors that are not equal bit for bit, with the number of elements that differ.
        missing: Tensors that the checkpoint lacks.
        unexpected: Quantized layers and tensors that it has and the model has not.
        agreement: What an engine computed with it, where one was asked.
        speed: What it costs there, and ``baseline`` what the float model does, where that was timed.
        notes: What was not compared, and why.
        with_image: The same on inputs with an image, of models that write text and read both.
        settings: Keys of the configuration that say something else of the architecture than the model does, or of how the
            checkpoint is quantized than its export would; tokens of ``generation_config``; what differs in the tokenizer.
    """

    layers: int
    differing: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    agreement: Agreement | OutputAgreement | None = None
    speed: Speed | None = None
    baseline: Speed | None = None
    notes: list[str] = field(default_factory=list)
    with_image: OutputAgreement | None = None
    settings: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        equal = not self.differing and not self.missing and not self.unexpected and not self.settings
        return self.layers > 0 and equal and all(found.ok for found in (self.agreement, self.with_image) if found)

    def __str__(self) -> str:
        problems = []
        if self.differing:
            name, count = next(iter(self.differing.items()))
            problems.append(
                f"{_tensors(len(self.differing), 'differs', 'differ')}, the first {name} in {count} elements"
            )
        if self.missing:
            problems.append(f"{_tensors(len(self.missing), 'is', 'are')} missing, the first {self.missing[0]}")
        if self.unexpected:
            stray = self.unexpected[0]
            problems.append(f"{_tensors(len(self.unexpected), 'is', 'are')} not the model's, the first {stray}")
        if self.settings:
            count, verb = len(self.settings), "differs" if len(self.settings) == 1 else "differ"
            problems.append(
                f"{count} of the configuration's keys {verb} from the model's, the first {self.settings[0]}"
            )
        parts = problems or [f"{self.layers} layers equal bit for bit"]
        if self.agreement is not None:
            parts.append(str(self.agreement))
        if self.with_image is not None:
            parts.append(f"with an image, {self.with_image}")
        return "; ".join([*parts, *self.notes])


def _tensors(count: int, one: str, many: str) -> str:
    return f"{count} tensor {one}" if count == 1 else f"{count} tensors {many}"
