"""SPANet's command line: python main.py -a ACTION [options]; -h lists the actions and options."""

import os
import signal
import sys
from collections.abc import Callable

from settings import Settings, UserError, one_line
from system import interrupt, machine, streams
from system.commandline import parse, short_help
from system.compiled import limit_pool, use_threads

machine.share_cores()


def main(argv: list[str] | None = None) -> int:
    """Run one action. Returns the exit status: 2 for what the user can mend, told in one line,
    and 128 + its number for a signal.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        print(short_help())
        return 2
    try:
        settings = parse(argv)
        return run(settings)
    except UserError as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename or 'input/output'}: {error.strerror or error}"
    except (MemoryError, RuntimeError) as error:
        message = explain_error(error)
        if not message:
            raise
    except KeyboardInterrupt as error:
        number = getattr(error, "number", signal.SIGINT)
        by = "" if number == signal.SIGINT else f" ({signal.Signals(number).name})"
        print(f"\ninterrupted{by}", file=sys.stderr)
        return 128 + number
    rank = os.environ.get("RANK", "0")
    who = "main.py" if rank == "0" else f"main.py, rank {rank}"
    print(f"{who}: {one_line(message)}", file=sys.stderr)
    return 2


def explain_error(error: MemoryError | RuntimeError) -> str:
    """What a user can mend of an error that may come at any moment; empty if it is none such."""
    if "DataLoader worker" in str(error) and not isinstance(error, MemoryError):
        return "a process that loads data was killed; was there enough memory?"
    from engine.device import is_out_of_memory  # which takes seconds

    if is_out_of_memory(error):
        return "not enough memory; expected smaller images, crops or batches, or fewer processes"
    return ""


def run(settings: Settings) -> int:
    """Run the action of the settings. Raises UserError."""
    return ACTIONS[settings.action](settings)


# Each action imports its own modules: they take seconds, which neither -h nor a misspelt option
# should cost. What must happen before torch is imported, or Numba, stands first.


def _train(settings: Settings) -> int:
    if settings.checkpoint_activations:
        machine.prepare_lean_training()
    from actions.train import train

    return train(settings)


def _test(settings: Settings) -> int:
    machine.prepare_inference()
    from actions.test import test

    return test(settings)


def _score(settings: Settings) -> int:
    from actions.score import score

    return score(settings)


def _derain(settings: Settings) -> int:
    machine.prepare_inference()
    from actions.derain import derain

    return derain(settings)


def _web(settings: Settings) -> int:
    machine.prepare_inference()
    from actions.web import web

    return web(settings)


def _export(settings: Settings) -> int:
    from actions.export import export

    return export(settings)


def _limit_threads(settings: Settings) -> None:
    limit_pool(settings.num_threads or machine.count_cores())
    use_threads(settings.num_threads or machine.count_cores())


def _clean(settings: Settings) -> int:
    _limit_threads(settings)
    from actions.clean import clean

    return clean(settings)


def _pairs(settings: Settings) -> int:
    _limit_threads(settings)
    from actions.pairs import pairs

    return pairs(settings)


def _check(settings: Settings) -> int:
    from actions.check import check

    return check(settings)


def _lists(settings: Settings) -> int:
    from actions.lists import lists

    return lists(settings)


ACTIONS: dict[str, Callable[[Settings], int]] = {
    "train": _train,
    "test": _test,
    "score": _score,
    "derain": _derain,
    "web": _web,
    "export": _export,
    "clean": _clean,
    "pairs": _pairs,
    "check": _check,
    "lists": _lists,
}


if __name__ == "__main__":
    streams.make_lasting()
    status = interrupt.run_program(main)
    if "WORLD_SIZE" in os.environ:
        # A rank is done, with all written and closed. The threads by which gloo met the others can
        # abort the process as Python takes it down, and torchrun would end the others for that.
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)
    sys.exit(status)
