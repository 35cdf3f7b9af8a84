"""SPANet's command line: python main.py -a ACTION [options]; -h lists the actions and options."""

import os
import sys

import machine
from settings import Settings, UserError, parse


def main(argv: list[str] | None = None) -> int:
    """Run one action. Returns the exit status: 2 for what the user can mend, told in one line."""
    try:
        settings = parse(argv)
        return run(settings)
    except UserError as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename or 'input/output'}: {error.strerror or error}"
    except MemoryError as error:
        message = f"not enough memory: {error}"
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):  # torch tells of it by a signal, at any moment
            raise
        message = "a process that loads data was killed; was there enough memory?"
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    rank = os.environ.get("RANK", "0")
    who = "main.py" if rank == "0" else f"main.py, rank {rank}"
    print(f"{who}: {message}", file=sys.stderr)
    return 2


def run(settings: Settings) -> int:
    """Run the action of the settings. Raises UserError."""
    # Before torch is imported, which reads the environment once.
    if settings.action in ("test", "derain"):
        machine.prepare_inference()
    elif settings.checkpoint_activations:
        machine.prepare_lean_training()
    # Imported here: they take seconds, which neither -h nor a misspelt option should cost.
    if settings.action in ("clean", "pairs"):
        from compiled import limit_pool, use_threads

        limit_pool(settings.num_threads or machine.cores())
        use_threads(settings.num_threads or machine.cores())
    if settings.action == "clean":
        from clean import clean

        return clean(settings)
    if settings.action == "pairs":
        from pairs import pairs

        return pairs(settings)
    from derain import derain
    from evaluate import test
    from export import export
    from session import Session
    from train import train

    session = Session(settings)
    actions = {"train": train, "test": test, "derain": derain, "export": export}
    try:
        return actions[settings.action](session)
    finally:
        session.close()


if __name__ == "__main__":
    sys.exit(main())
