"""The one exception for what a user got wrong. It stands in the lowest layer, so that every package may raise it."""


class UserError(ValueError):
    """Settings, files or data that cannot be what the user meant: one line that names the thing and the remedy.

    A command line prints the line alone; every other exception is a fault of the program and keeps its traceback.
    """
