"""The one exception for bad input, whose text is a sentence for the user."""


class UserError(ValueError):
    """Input that cannot be used: says what it is, where it stands, what is allowed and what was given."""
