"""What says that a model has no bounds."""

from robust.errors import RobustError


class Unsupported(RobustError):
    """The model holds something for which no bounds are known; the message names it."""
