"""The action `lists`: write down the pairs of a folder as a list, to be seen or edited."""

import os
from pathlib import Path

from media.lists import PairList, read_list
from settings import Settings, UserError, one_line
from system.files import write_atomically

BEYOND = ("\t", "\n", "\r")  # what no name in a list can hold


def lists(settings: Settings) -> int:
    """Write the list `-o` of the folder `-i`, and show three of its pairs. Returns 0.

    Raises:
        UserError: the folder is not in a layout that is known; the list cannot be written.
    """
    target = Path(settings.output)
    if target.suffix.lower() != ".txt":
        raise UserError(f"-o: {settings.output!r}; expected the name of a list, such as pairs.txt")
    if not Path(settings.input).is_dir():
        raise UserError(f"-i: {settings.input!r} is not a folder; expected a folder of pairs")
    told: list[str] = []
    pairs = read_list(settings.input, True, told.append, settings.layout, settings.side_by_side)
    lines = [_line(pairs, index, target.parent) for index in range(len(pairs))]
    notes = [f"# {one_line(note, 1000)}" for note in told]
    write_atomically(target, "\n".join([*notes, *lines, ""]).encode())
    print("\n".join(told))
    for index in sorted({0, len(pairs) // 2, len(pairs) - 1}):
        print(one_line("  " + lines[index].strip("\t").replace("\t", "   ")))
    ending = f"; pass it with --side-by-side {pairs.halves}" if pairs.halves else ""
    print(f"{target}: {len(pairs)} line{'s' * (len(pairs) > 1)}{ending}")
    return 0


def _line(pairs: PairList, index: int, home: Path) -> str:
    """A line of a list in the folder home. Raises UserError for names that none can hold."""
    pair = pairs[index]
    files = [pair.rainy] if pair.halves else [pair.rainy, pair.clean]
    names = [Path(os.path.relpath(file, home)).as_posix() for file in files]
    for name in names:
        if any(sign in name for sign in BEYOND):
            raise UserError(f"{name!r}: expected a name without TAB or end of line")
    # A TAB, so that names may hold spaces; ./ so that none begins as a comment does.
    return "\t".join(f"./{name}" for name in names) + "\t" * (len(names) == 1)
