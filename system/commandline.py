"""The command line: its options are the fields of Settings, each for the actions that it serves.

Nothing is imported here but Python's own modules, so that help comes at once.
"""

import argparse
import sys
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from settings import Settings, UserError, flag, nearest


@dataclass(frozen=True)
class Guide:
    """What the help says of an action."""

    purpose: str
    needs: str  # what its usage line holds besides the options that may be left out
    example: str


GUIDES = {
    "train": Guide(
        "train a network, or resume a run that was interrupted",
        "",
        "--train-list own/real_world.txt",
    ),
    "test": Guide(
        "derain a list of images and, where the clean images are known, measure PSNR and SSIM",
        "",
        "-m demo --test-list own/real_test.txt",
    ),
    "score": Guide(
        "score results of other programs by the clean images, and make the tables of a paper",
        "-i RESULTS -o FOLDER",
        "-i results --test-list Rain100L -o scores",
    ),
    "derain": Guide(
        "remove the rain from a picture, a video or a folder of them",
        "-i INPUT -o OUTPUT",
        "-m published -i photo.jpg -o derained.jpg",
    ),
    "web": Guide(
        "derain pictures and short videos on a page in the browser",
        "",
        "-m published",
    ),
    "export": Guide(
        "write the network as an ONNX file, which runs without PyTorch",
        "-o FILE.onnx",
        "-m demo -o spanet.onnx",
    ),
    "clean": Guide(
        "make one clean image from a rain video of a camera that stands still",
        "-i VIDEO -o FILE.png",
        "-i rain.mp4 -o clean.png",
    ),
    "pairs": Guide(
        "make a training set of rainy and clean patches from rain videos",
        "-i VIDEO|FOLDER -o FOLDER",
        "-i videos -o own",
    ),
    "check": Guide(
        "look at every pair of a training list, and say what to mend before training",
        "",
        "--train-list own/real_world.txt --fix own/good.txt",
    ),
    "lists": Guide(
        "write down the pairs of a folder as a list, and show three of them",
        "-i FOLDER -o LIST.txt",
        "-i Rain100L -o Rain100L.txt",
    ),
}
ABOUT = "SPANet: a network that removes rain from pictures and videos; train it, test it, use it."
MORE = """\
more:
  python main.py -a ACTION -h   the options of one action, with an example
  python main.py -h             all options
  README.md                     installation, data sets, results, troubleshooting"""
LESS = "`python main.py -a ACTION -h` shows the options of one action, with an example."
SHORT_NAMES = {"action": "-a", "model": "-m", "input": "-i", "output": "-o"}
KINDS_OF_TEXT = {  # by the last word of a setting's name
    "list": "FILE|FOLDER",
    "layout": "NAME",
    "from": "FILE",
    "fix": "FILE",
    "dir": "DIR",
    "host": "ADDRESS",
    "action": "ACTION",
    "model": "NAME|FILE",
    "candidates": "N,N,...",
}


def parse(argv: list[str] | None = None) -> Settings:
    """Settings of a command line (default: the process's own). -h prints help and exits.

    Raises:
        UserError: an unknown option, with the nearest right one; an option that does not serve the
            action; a bad value.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = _parser(None)
    known = [name for option in parser._actions for name in option.option_strings]
    # Asked first, so that a misspelt -a is named rather than a missing one.
    for word in argv:
        name = word.split("=", 1)[0]
        if name.startswith("--") and name != "--" and name not in known:
            raise UserError(f"unknown option {name}{nearest(name, known)}")
    values, extra = parser.parse_known_args(argv)
    given = {name: value for name, value in vars(values).items() if value is not None}
    action = given.get("action")
    if action is not None:
        Settings(action)  # raises where there is no such action
    if given.pop("help"):
        _parser(action).print_help()
        sys.exit(0)
    if extra:
        hint = f"; did you mean -a {extra[0]}?" if extra[0] in GUIDES else nearest(extra[0], known)
        raise UserError(f"unknown argument {extra[0]!r}{hint}")
    if action is None:
        raise UserError(f"-a/--action: expected one of {', '.join(GUIDES)}")
    _require_served(action, given)
    return Settings(**given)


def short_help() -> str:
    """What a command line without a word is answered with."""
    actions = [f"  {name:8}{guide.purpose}" for name, guide in GUIDES.items()]
    examples = [f"  {_example(name)}" for name in ("derain", "pairs", "train", "test")]
    usage = ["usage: python main.py -a ACTION [options]"]
    parts = [[ABOUT], usage, ["actions:", *actions], ["examples:", *examples], [MORE]]
    return "\n\n".join("\n".join(part) for part in parts)


def _require_served(action: str, given: dict[str, Any]) -> None:
    for f in fields(Settings):
        serves = f.metadata["serves"]
        if f.name in given and action not in serves:
            others = " and ".join(part for part in (", ".join(serves[:-1]), serves[-1]) if part)
            raise UserError(f"{'/'.join(_names(f.name))}: is for {others}; this is -a {action}")


def _example(action: str) -> str:
    return f"python main.py -a {action} {GUIDES[action].example}"


def _names(name: str) -> list[str]:
    return [SHORT_NAMES[name], flag(name)] if name in SHORT_NAMES else [flag(name)]


class Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line, as a UserError."""

    def error(self, message: str) -> None:
        raise UserError(message.removeprefix("argument "))


def _parser(action: str | None) -> Parser:
    """A parser with the options of one action, or of all, grouped by action.

    No option has a default here, so that what was given can be told from what was not.
    """
    guide = GUIDES.get(action, Guide(ABOUT, "", ""))
    usage = f"python main.py -a {action or 'ACTION'} {guide.needs} [options]"
    parser = Parser(
        usage=" ".join(usage.split()),
        description=guide.purpose[0].upper() + guide.purpose[1:].rstrip(".") + ".",
        epilog=f"example:\n  {_example(action)}" if action else LESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    common = parser.add_argument_group("options")
    common.add_argument("-h", "--help", action="store_true", help="show help and exit")
    if action:
        groups = {action: parser.add_argument_group(f"options of -a {action}")}
    else:
        groups = {"": parser.add_argument_group("several actions, named in brackets")} | {
            name: parser.add_argument_group(f"-a {name}", about.purpose)
            for name, about in GUIDES.items()
        }
    for f in fields(Settings):
        serves = f.metadata["serves"]
        if f.name == "action":
            _add(common, f, "")
        elif action in serves:
            _add(groups[action], f, action)
        elif action is None and len(serves) == 1:
            _add(groups[serves[0]], f, serves[0])
        elif action is None:
            _add(groups[""], f, "")
    return parser


def _add(group: Any, f: Any, action: str) -> None:
    """Add the option of a field, with its help for an action, or for all where that is ""."""
    kind = get_type_hints(Settings)[f.name]
    serves = f.metadata["serves"]
    several = not action and f.name != "action"
    ending = f" [{', '.join(serves)}]" if several else ""
    spec: dict[str, Any] = {"dest": f.name, "help": _help(f, action) + ending}
    if kind is bool:
        spec["action"] = argparse.BooleanOptionalAction
    elif kind in (int, float):
        spec |= {"type": _number(kind), "metavar": "N" if kind is int else "X"}
    elif get_origin(kind) is Literal and f.name != "action":
        spec["metavar"] = "|".join(get_args(kind))
    else:
        spec["metavar"] = KINDS_OF_TEXT.get(f.name.split("_")[-1], "PATH")
    group.add_argument(*_names(f.name), **spec)


def _help(f: Any, action: str) -> str:
    text = f.metadata["help"]
    if isinstance(text, dict):
        by_action = "; ".join(f"{told} ({name})" for name, told in text.items() if name)
        text = text.get(action, text.get("", by_action))
    text = text.replace("%", "%%")
    if f.default in ("", MISSING):
        return text
    if isinstance(f.default, bool):
        return f"{text} (default: {'on' if f.default else 'off'})"
    return f"{text} (default: {f'{f.default:g}' if isinstance(f.default, float) else f.default})"


def _number(kind: type) -> Any:
    def convert(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            noun = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {noun}") from None

    return convert
