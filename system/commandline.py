"""The command line: its options are the fields of Settings, each for the actions that it serves.

Only modules of Python itself are imported here, so that help comes at once.
"""

import argparse
import os
import sys
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, get_args, get_origin

from settings import ACTIONS, Settings, UserError, flag, nearest, one_or_several
from system.config import VERSION, describe_code, read_config
from system.files import list_checkpoints

DESCRIPTION = (
    "SPANet: a network that removes rain from pictures and videos; train it, test it, use it."
)
MORE_HELP = """\
more:
  python main.py -a ACTION -h   the options of one action, with an example
  python main.py -h             all options
  README.md                     installation, data sets, results, troubleshooting"""
LIST_HINT = "; -h lists the options"
ACTION_HINT = "`python main.py -a ACTION -h` shows the options of one action, with an example."
FOLDERS = ("model_dir", "log_dir", "result_dir")  # in which a named run has its own
SHORT_FLAGS = {"action": "-a", "model": "-m", "input": "-i", "output": "-o", "count": "-n"}


def parse(argv: list[str]) -> Settings:
    """Settings of a command line and of the file that it names.

    -h prints help and exits, and so does --version.

    Raises:
        UserError: an unknown option, with the nearest right one; an option that does not serve the
            action; a bad value.
    """
    parser = build_parser(None)
    values, extra = parser.parse_known_args(argv)
    given = {
        name: one_or_several(value) for name, value in vars(values).items() if value is not None
    }
    if "version" in given:
        code = describe_code()
        print(f"SPANet {VERSION}" + f", code {code}" * bool(code))
        sys.exit(0)
    config = read_config(given["config"]) if "config" in given else {}
    action = given.get("action", config.get("action"))
    if action is not None:
        Settings(action)  # raises where there is no such action
    if "help" in given:
        build_parser(action).print_help()
        sys.exit(0)
    if extra:
        name = extra[0].partition("=")[0]
        hint = nearest(name, list(parser._option_string_actions)) or LIST_HINT
        if name in ACTIONS:
            hint = f"; did you mean -a {name}?"
        elif name in ("--local-rank", "--local_rank"):  # of python -m torch.distributed.launch
            hint = "; expected torchrun to start the ranks"
        what = f"option {name}" if name.startswith("--") else f"argument {extra[0]!r}"
        raise UserError(f"unknown {what}{hint}")
    if action is None:
        raise UserError(f"-a/--action: expected one of {', '.join(ACTIONS)}")
    for f in fields(Settings):
        serves = f.metadata["serves"]
        if f.name in given and action not in serves:
            names, others = "/".join(option_names(f)), ", ".join(serves)
            raise UserError(f"{names}: is an option of -a {others}; this is -a {action}")
    return Settings(**resolve_options(action, given, config))


def resolve_options(action: str, given: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """All options of an action that are not at their defaults.

    Args:
        given: options of the command line, which count more than those of config.
        config: options of a file, which may be of several actions.
    """
    defaults = {f.name: f.default for f in fields(Settings) if action in f.metadata["serves"]}
    ignored = set(FOLDERS) if "run" in given else set()  # those of the run in the file
    if config.get("action") != action:
        ignored.add("model")  # where another action starts from
    known = defaults.keys() - ignored
    values = {name: value for name, value in config.items() if name in known} | given
    run = values.get("run", "")
    for name in defaults.keys() & set(FOLDERS) if run else ():
        values.setdefault(name, os.path.join(str(defaults[name]), run))
    if "model" in defaults and action != "train":
        names = list_checkpoints(Path(values.get("model_dir", defaults["model_dir"])))
        if run and "best" in names:
            values.setdefault("model", "best")
        elif action in ("derain", "web") and len(names) == 1:
            values.setdefault("model", names[0])
    return values


def short_help() -> str:
    """The help that a command line without arguments prints."""
    usage = "usage: python main.py -a ACTION [options]"
    lines = [DESCRIPTION, "", usage, "", "actions:"]
    lines += [f"  {name:8}{action.purpose}" for name, action in ACTIONS.items()]
    lines += ["", "examples:"]
    lines += [f"  {example_of(name)}" for name in ("derain", "pairs", "train", "test")]
    return "\n".join([*lines, "", MORE_HELP])


def example_of(action: str) -> str:
    """A command line of an action, as in its help."""
    return f"python main.py -a {action} {ACTIONS[action].example}"


def option_names(f: Field) -> list[str]:
    """The names of a setting's option, such as -m and --model."""
    return [SHORT_FLAGS[f.name], flag(f.name)] if f.name in SHORT_FLAGS else [flag(f.name)]


class GivenOnce(argparse.Namespace):
    """Values of a command line, which may give each option once."""

    def __setattr__(self, name: str, value: object) -> None:
        former = getattr(self, name, None)  # argparse sets each to None first
        if former is not None:
            both = f"{former!r} and {value!r}"
            raise UserError(f"{flag(name)}: given twice, as {both}; expected once")
        super().__setattr__(name, value)


class Parser(argparse.ArgumentParser):
    """A parser that takes each option once, and raises errors as a UserError of one line."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse's, into a GivenOnce."""
        return super().parse_known_args(args, namespace or GivenOnce())

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))


def build_parser(action: str | None) -> Parser:
    """A parser with the options of one action, or of all, grouped by action.

    Its options have no defaults, so that parse sees which were given.
    """
    purpose = ACTIONS[action].purpose if action else DESCRIPTION
    required = ACTIONS[action].required if action else ""
    usage = f"python main.py -a {action or 'ACTION'} {required} [options]"
    parser = Parser(
        usage=" ".join(usage.split()),
        description=purpose[0].upper() + purpose[1:].rstrip(".") + ".",
        epilog=f"example:\n  {example_of(action)}" if action else ACTION_HINT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    common = parser.add_argument_group("options")
    once: Any = {"action": "store_const", "const": True}
    common.add_argument("-h", "--help", help="show help and exit", **once)
    common.add_argument("--version", help="show the version and exit", **once)
    if action:
        groups = {action: parser.add_argument_group(f"options of -a {action}")}
    else:
        groups = {"": parser.add_argument_group("several actions, named in brackets")}
        for name, each in ACTIONS.items():
            groups[name] = parser.add_argument_group(f"-a {name}", each.purpose)
    for f in fields(Settings):
        serves = f.metadata["serves"]
        if f.name == "action":
            add_option(common, f, "")
        elif action is None or action in serves:
            group = action or (serves[0] if len(serves) == 1 else "")
            add_option(groups[group], f, group)
    return parser


def add_option(group: Any, f: Field, action: str) -> None:
    """Add the option of a field, with its help for an action, or for all where that is ""."""
    kind: Any = f.type
    is_shared = not action and f.name != "action"
    suffix = f" [{', '.join(f.metadata['serves'])}]" if is_shared else ""
    spec: dict[str, Any] = {"dest": f.name, "help": format_help(f, action) + suffix}
    if f.name.startswith("no_"):
        spec |= {"action": "store_const", "const": True}
    elif kind is bool:
        spec["action"] = argparse.BooleanOptionalAction
    elif get_origin(kind) is Literal:
        spec["metavar"] = "|".join(get_args(kind))
    else:
        if get_origin(kind) is UnionType:
            kind = get_args(kind)[0]
            if is_shared or action in f.metadata["several"]:
                spec["nargs"] = "+"
        last_word = f.name.split("_")[-1].upper()
        spec |= {"type": kind, "metavar": {int: "N", float: "X"}.get(kind, last_word)}
    group.add_argument(*option_names(f), **spec)


def format_help(f: Field, action: str) -> str:
    """The help text of a field with its default, for an action, or for all where that is ""."""
    text = f.metadata["help"]
    if isinstance(text, dict):
        by_action = "; ".join(f"{help} ({name})" for name, help in text.items() if name)
        text = text.get(action, text.get("", by_action))
    text = text.replace("%", "%%")
    if f.default in ("", MISSING):
        return text
    default = "off" if f.default is False else f.default
    return f"{text} (default: {f'{default:g}' if isinstance(default, float) else default})"
