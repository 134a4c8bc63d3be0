"""See `av/__init__.py`."""

import enum


class Disposition(enum.IntFlag):
    """What a stream is for."""

    attached_pic = 1024
