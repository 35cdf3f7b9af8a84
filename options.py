"""What options are made of: a field with its range, and the error that refuses a value."""

import difflib
from dataclasses import field
from typing import Any, Literal, get_args, get_origin


def one_line(text: str, longest: int = 300) -> str:
    """text in printable characters (names of files hold any), its middle cut out if it is long."""
    ends = text[:longest] + text[longest:][-longest:]
    told = "".join(c if c.isprintable() else repr(c)[1:-1] for c in ends)
    if len(told) <= longest:
        return told
    return f"{told[: longest * 2 // 3 - 5]} ... {told[-longest // 3 :]}"


class UserError(Exception):
    """What a user can mend, told in one line; main.py prints it and exits with status 2."""

    def __str__(self) -> str:
        return one_line(super().__str__())


def option(
    default: Any,
    serves: tuple[str, ...],
    help: str | dict[str, str],
    *,
    low: float | None = None,
    high: float | None = None,
    recipe: bool = False,
) -> Any:
    """A dataclass field with its actions, its help text and, for numbers, its inclusive range.

    help may differ by action: those that it does not name have the text of "".
    recipe marks what decides where a training run goes: a resume must not change it unnoticed.
    """
    metadata = {"serves": serves, "help": help, "low": low, "high": high, "recipe": recipe}
    return field(default=default, metadata=metadata)


def flag(name: str) -> str:
    """The option of a setting."""
    return "--" + name.replace("_", "-")


def nearest(word: str, known: list[str]) -> str:
    """The end of a message: the known word that was probably meant, if there is one."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    return f"; did you mean {match[0]}?" if match else ""


def check(f: Any, kind: Any, value: Any) -> None:
    """Raise UserError unless value is of the field's type and within its range."""
    name = flag(f.name)
    if get_origin(kind) is Literal:
        known = list(get_args(kind))
        if value not in known:
            hint = nearest(str(value), known)
            raise UserError(f"{name}: {value!r} is not one of {', '.join(known)}{hint}")
        return
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or (kind is not bool and isinstance(value, bool)):
        raise UserError(f"{name}: expected {kind.__name__}, got {value!r}")
    if isinstance(value, str) and value != value.encode(errors="replace").decode():
        raise UserError(f"{name}: {value!r} is not UTF-8 text")
    low, high = f.metadata["low"], f.metadata["high"]
    # Written so that NaN, which compares false with everything, is refused too.
    if low is not None and not low <= value <= (float("inf") if high is None else high):
        upper = "up" if high is None else f"to {high}"
        raise UserError(f"{name}: {value} is out of range; expected a number from {low} {upper}")
