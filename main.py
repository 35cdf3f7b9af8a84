"""SPANet's command line: python main.py -a train|test -m NAME [options]; -h lists them."""

import sys

from evaluate import test
from session import Session
from settings import UserError, parse
from train import train

ACTIONS = {"train": train, "test": test}


def main(argv: list[str] | None = None) -> int:
    """Run one action. Returns the exit status: 2 for what the user can mend, told in one line."""
    try:
        settings = parse(argv)
        session = Session(settings)
        try:
            return ACTIONS[settings.action](session)
        finally:
            session.close()
    except UserError as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename or 'input/output'}: {error.strerror or error}"
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    print(f"main.py: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
