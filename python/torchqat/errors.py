"""The exception for bad input, whose text is a sentence for the user, and words that such sentences share."""


class UserError(ValueError):
    """Input that cannot be used: says what it is, where it stands, what is allowed and what was given."""


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def first_of(names: list[str]) -> str:
    """``a.weight``, or ``a.weight and 3 more``."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
