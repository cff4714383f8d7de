"""The one exception dither raises for bad input: a sentence saying what, where, got and do."""


class DitherError(ValueError):
    """Bad input, in one sentence: what is wrong, where, what was got, what to do."""


class NotFinite(DitherError):
    """A network's outputs are not finite: it diverged, and what is asked of it has no answer."""
