"""Ranks: the processes of one run, which torchrun starts, on one machine or several.

Without torchrun there is one rank, 0 of 1, and nothing here communicates.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from itertools import islice, repeat
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from settings import UserError

# Longer than a rank may work alone, as when it scores the largest image of its share.
TIMEOUT = timedelta(minutes=30)
# How gloo and NCCL report that another rank is gone.
LOST_RANK = ("closed by peer", "reset by peer", "Broken pipe", "imed out", "remote process exited")


class Ranks:
    """This process's place among the ranks.

    Attributes:
        rank: 0 is the one that writes files.
        world_size: number of ranks.
        local_rank, local_size: the same on this machine alone.
        is_first: whether this is rank 0.
        is_distributed: whether there are several.
    """

    def __init__(self) -> None:
        self.rank = _read_number("RANK", 0)
        self.world_size = _read_number("WORLD_SIZE", 1)
        self.local_rank = _read_number("LOCAL_RANK", 0)
        self.local_size = _read_number("LOCAL_WORLD_SIZE", 1)
        self.is_first, self.is_distributed = self.rank == 0, self.world_size > 1

    def join(self, device: torch.device) -> None:
        """Meet the other ranks: nccl between GPUs, gloo between CPUs."""
        if not self.is_distributed or dist.is_initialized():
            return
        backend = "nccl" if device.type == "cuda" else "gloo"
        if "TORCHELASTIC_RUN_ID" in os.environ:
            threading.Thread(target=_stop_with_parent, args=(os.getppid(),), daemon=True).start()
        try:
            store, _, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))
            if self.local_size == self.world_size:
                # torchrun keeps its store over a restart, with the addresses of the dead ranks.
                # (Machines count restarts each on its own: there the number would not do.)
                restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
                store = dist.PrefixStore(f"restart {restarts}", store)
            dist.init_process_group(
                backend, store=store, rank=self.rank, world_size=self.world_size, timeout=TIMEOUT
            )
        except (RuntimeError, ValueError) as error:
            raise UserError(f"cannot meet the other ranks: {error}") from None

    def all_reduce_mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over the ranks, the same on all. A GPU is not waited for."""
        if not self.is_distributed:
            return tensor
        total = tensor.clone()
        with self.translate_dist_errors():
            dist.all_reduce(total)
        return total / self.world_size

    def all_gather(self, item: Any) -> list[Any]:
        """The items of all ranks, in their order."""
        if not self.is_distributed:
            return [item]
        items: list[Any] = [None] * self.world_size
        with self.translate_dist_errors():
            dist.all_gather_object(items, item)
        return items

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.all_gather(None)

    def gather_results(self, work: Callable[[], Any]) -> Iterator[Any]:
        """What work() returns on each rank, in their order, on all of them.

        In place of a result, all raise the UserError that a rank's work raised.
        """
        try:
            outcome: tuple[Any, UserError | None] = work(), None
        except UserError as error:
            outcome = None, error
        for result, failure in self.all_gather(outcome):
            if failure:
                raise failure
            yield result

    def interleave(self, own_items: Iterator[Any], count: int) -> Iterator[Any]:
        """The items of all ranks in turn, `count` in all, on all of them.

        A rank's own are items rank, rank + world_size and so on. In place of an item, all raise the
        UserError that a rank's iterator raised.
        """
        for start in range(0, count, self.world_size):
            has_own = start + self.rank < count
            results = self.gather_results(partial(next, own_items if has_own else repeat(None)))
            yield from islice(results, count - start)

    def say(self, line: str) -> None:
        """Print a line, on the first rank."""
        if self.is_first:
            print(line, flush=True)

    @contextmanager
    def translate_dist_errors(self) -> Iterator[None]:
        """Raise errors of communication as a UserError, as when another rank was lost."""
        try:
            yield
        except RuntimeError as error:
            text = str(error)
            if self.is_distributed and any(words in text for words in LOST_RANK):
                raise UserError("stopped, another rank was lost") from None
            if self.is_distributed and "NCCL" in text:  # two ranks on one GPU, small /dev/shm, ...
                reason = text.strip().splitlines()[-1][:200]
                raise UserError(f"NCCL cannot go on: {reason}") from None
            raise

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        # After an error main.py ends the process: nccl would wait here for the other ranks.
        if kind is None and dist.is_initialized():
            self.barrier()  # torchrun ends the others once one leaves with a status that is not 0
            dist.destroy_process_group()


def _stop_with_parent(parent: int) -> None:
    """Once torchrun has ended, end this process as SIGTERM does."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def _read_number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UserError(f"{name}: {text!r} is not a number; expected what torchrun sets")
    return int(text)
