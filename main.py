"""SPANet's command line: python main.py -a ACTION [options]; -h lists the actions and options."""

import gc
import os
import sys
import traceback
from importlib import import_module

from settings import Settings, UserError
from system import machine
from system.commandline import parse, short_help
from system.compiled import limit_pool, use_threads
from system.program import report_errors, run_program

REQUIREMENTS = {"export": "requirements-onnx.txt", "web": "requirements-web.txt"}

machine.share_cores()


def main(argv: list[str] | None = None) -> int:
    """Run one action. Returns the exit status, see report_errors."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        print(short_help())
        return 2
    return report_errors("main.py", lambda: run(parse(argv)))


def run(settings: Settings) -> int:
    """Run the function NAME of actions/NAME.py. Raises UserError.

    The module is imported here: it takes seconds, which neither -h nor a misspelt option should
    cost.
    """
    prepare_process(settings)
    name = f"actions.{settings.action}"
    try:
        if name not in sys.modules:
            gc.disable()  # it would search what is imported for garbage, over and over
            try:
                import_module(name)
                gc.freeze()
            finally:
                gc.enable()
        return getattr(sys.modules[name], settings.action)(settings)
    except ImportError as error:
        file = REQUIREMENTS.get(settings.action, "requirements.txt")
        raise UserError(
            f"-a {settings.action}: {error}; expected `pip install -r {file}`"
        ) from None
    except (MemoryError, RuntimeError) as error:
        from engine.device import is_out_of_memory  # which takes seconds

        if not is_out_of_memory(error):
            raise
        expected = "expected smaller images, crops or batches, or fewer processes"
        raise UserError(f"not enough memory; {expected}") from None


def prepare_process(settings: Settings) -> None:
    """Set up memory and threads. This must come before torch, or Numba, is imported."""
    if settings.action in ("test", "derain", "web"):
        machine.keep_blocks(machine.INFERENCE_BLOCKS)
    elif settings.action == "train" and settings.checkpoint_activations:
        machine.keep_blocks(machine.LEAN_TRAINING_BLOCKS)
    elif settings.action in ("clean", "pairs"):
        threads = settings.num_threads or machine.count_cores()
        limit_pool(threads)
        use_threads(threads)


if __name__ == "__main__":
    if "WORLD_SIZE" not in os.environ:
        sys.exit(run_program(main))
    try:
        status = run_program(main)
    except Exception:
        traceback.print_exc()
        status = 1
    # Everything is written and closed. The threads of gloo can abort the process while Python shuts
    # down, and torchrun would then end the other ranks; nccl can wait there for the others.
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)
