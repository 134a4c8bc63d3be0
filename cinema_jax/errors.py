"""The error a user can mend: its message is one sentence that stands without a stack trace."""


class InputError(ValueError):
    """A file, field or value that came from outside is not what is accepted.

    Commands print the message alone; the data loader counts these and takes another example.
    """
