"""The action `lists`: write down the pairs of a folder as a list, to be seen or edited."""

from pathlib import Path

from media.lists import format_pair, read_list, write_list
from settings import Settings, UserError, format_count, one_line


def lists(settings: Settings) -> int:
    """Write the list `-o` of the folder `-i`, and show three of its pairs. Returns 0.

    Raises:
        UserError: the folder is not in a layout that is known; the list cannot be written.
    """
    target = Path(settings.output)
    if target.suffix.lower() != ".txt":
        raise UserError(f"-o: {settings.output!r}; expected the name of a list, such as pairs.txt")
    source = settings.only_input
    if not Path(source).is_dir():
        raise UserError(f"-i: {source!r} is not a folder; expected a folder of pairs")
    notes: list[str] = []
    pairs = read_list(source, True, notes.append, settings.layout, settings.side_by_side)
    lines = [format_pair(pair, target.parent) for pair in pairs]
    write_list(target, [*(f"# {one_line(note, 1000)}\n" for note in notes), *lines])
    print("\n".join(notes))
    for index in sorted({0, len(pairs) // 2, len(pairs) - 1}):
        print(one_line("  " + lines[index].strip().replace("\t", "   ")))
    option = f"; pass it with --side-by-side {pairs.halves}" if pairs.halves else ""
    print(f"{target}: {format_count(len(pairs), 'line')}{option}")
    return 0
