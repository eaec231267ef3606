"""Errors that every rank of a job raises at once, so that one of them tells the user."""


class SharedMistake(ValueError):  # noqa: N818
    """A user's mistake that all ranks know of."""


class RemoteError(RuntimeError):
    """A rank failed with something that is not the user's mistake; every rank gets its message.

    Attributes:
        root_is_lost: rank 0 cannot tell the user any more, so every rank does.
    """

    def __init__(self, message: str, *, root_is_lost: bool = False) -> None:
        super().__init__(message)
        self.root_is_lost = root_is_lost
