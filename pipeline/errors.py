"""The one kind of error that is a user's to mend."""

from __future__ import annotations


class UserError(ValueError):
    """What is wrong, where, and what to do, in one or two lines; the command prints it and exits with 2."""


class NoRoomError(UserError):
    """A cluster had no room for as long as it was waited for; later it may."""
