"""`cinema-jax` or `python -m cinema_jax`: the commands of the project, or one of them."""

import difflib
import os
import sys

from cinema_jax.commands import usage


def main() -> None:
    """List the commands, or become one: `cinema-jax train ...` is `python -m cinema_jax.train ...`."""
    name, *arguments = sys.argv[1:] or ["help"]
    if name in (*usage.HELP, "help"):
        print(usage.overview())
        return
    if name not in usage.COMMANDS:
        close = difflib.get_close_matches(name, usage.COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(usage.COMMANDS)}"
        print(f"error: {name!r} is not a command; {hint}", file=sys.stderr)
        sys.exit(2)
    os.execv(sys.executable, [sys.executable, "-m", f"cinema_jax.{name}", *arguments])


if __name__ == "__main__":
    main()
