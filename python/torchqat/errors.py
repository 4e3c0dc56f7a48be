"""The exception for bad input, whose text is a sentence for the user; what is wrong with recipes is one of it."""


class UserError(ValueError):
    """Input that cannot be used: says what it is, where it stands, what is allowed and what was given."""


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
