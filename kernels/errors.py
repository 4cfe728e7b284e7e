"""The exceptions for what a user got wrong. They stand in the lowest layer, so that every package may raise them."""


class UserError(ValueError):
    """Settings, files or data that cannot be what the user meant: one line that names the thing and the remedy.

    A command line prints the line alone; every other exception is a fault of the program and keeps its traceback.
    """


class MissingError(UserError, FileNotFoundError):
    """What the user named is not there, or cannot be fetched."""


class DivergedError(UserError, FloatingPointError):
    """A loss or a gradient is not finite."""
