"""Words for messages: counts of things, and the first few of many names."""

from collections.abc import Iterable


def format_count(number: int, noun: str) -> str:
    """A number and its noun, in the plural where it is not 1: "1 file", "3 files"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def first_few(names: Iterable[object], limit: int = 5) -> str:
    """The first names, and how many more there are: "a, b, and 7 more"."""
    texts = list(map(str, names))
    more = [f"and {len(texts) - limit} more"] if len(texts) > limit else []
    return ", ".join(texts[:limit] + more)
