"""From plain functions to a command line: the verbs of an app, their flags, help, errors and output.

Flags come from a verb's signature (jsonargparse), help from its Google-style docstring, exit statuses
from the exceptions: 0 done, 1 the work failed, 2 the call was wrong. Progress goes to stderr, results to
stdout.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import json
import math
import numbers
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_origin, get_type_hints

from mambakit.core.errors import UsageError, UserError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

Verb = Callable[..., object]


def run_app(
    prog: str,
    verbs: Mapping[str, Verb],
    argv: Sequence[str] | None = None,
    description: str = "",
    examples: str = "",
) -> int:
    """Runs the verb that ``argv`` names and turns errors into one sentence on stderr.

    A verb is a function with annotated parameters. Keyword-only parameters, and those with a default,
    become flags (``max_time`` is ``--max-time``; a nested dataclass gives ``--train.lr``); a parameter
    before the ``*`` without a default is positional. A bool is a switch: ``--json``. A list takes all words
    up to the next flag: ``--lags 1 7``. Every verb also has ``--config FILE.yaml`` (values that the command
    line overrides), ``--print_config`` and ``--help``; lines after ``Examples:`` in its docstring close its
    help.

    Args:
        prog: What the user typed to come here, such as ``mambakit timeseries``.
        verbs: The functions by verb.
        argv: The words after ``prog``; None stands for ``sys.argv[1:]``.
        description: One paragraph for ``--help``.
        examples: Command lines for ``--help``, one a line.

    Returns:
        The exit status: 0, 1 (the work failed), 2 (the call was wrong) or 130 (interrupted).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv and argv[0] in ("-h", "--help"):
            print(_overview(prog, verbs, description, examples))
            return 0
        if not argv:
            print(_overview(prog, verbs, description, examples), file=sys.stderr)
            return 2
        if argv[0] not in verbs:
            raise UsageError(
                f"{prog}: there is no verb {argv[0]!r}{did_you_mean(argv[0], verbs)}; "
                f"verbs: {', '.join(verbs)}"
            )
        call = parse_call(f"{prog} {argv[0]}", verbs[argv[0]], argv[1:])
        verbs[argv[0]](**call)
        sys.stdout.flush()
    except SystemExit as done:  # --help and --print_config end the parser this way
        return done.code if isinstance(done.code, int) else 0
    except UserError as error:
        return _fail(str(error), error.exit_status)
    except BrokenPipeError:  # the reader (head, less) has seen enough
        sys.stdout = None  # the interpreter's own flush at exit would fail too
        return 0
    except OSError as error:
        named = f"{error.filename}: " if error.filename is not None else ""
        return _fail(f"{named}{error.strerror or error}", 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except Exception as error:
        if _is_backend_unavailable(error):
            return _fail(str(error), 1)
        raise
    return 0


def parse_call(prog: str, verb: Verb, argv: Sequence[str]) -> dict[str, Any]:
    """The keyword arguments of a verb from its command line.

    Raises:
        UsageError: On an unknown flag, a missing or bad value, or a config file that does not fit.
        SystemExit: After ``--help`` or ``--print_config``, with status 0.
    """
    from jsonargparse import ArgumentError

    parser = _parser(prog, verb)
    try:
        values = parser.instantiate(parser.parse_args(_normalised(parser, argv)))
    except ArgumentError as error:
        raise UsageError(f"{_one_sentence(str(error), parser)} (see {prog} --help)") from error
    except (ValueError, TypeError) as error:  # from the __post_init__ of a config dataclass
        raise UsageError(f"{_one_line(str(error))} (see {prog} --help)") from error
    return {name: values[name] for name in inspect.signature(verb).parameters}


def did_you_mean(word: str, known: Mapping[str, object] | Sequence[str]) -> str:
    """``; did you mean ...?``, or nothing if no known word is close."""
    close = difflib.get_close_matches(word, list(known), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def print_json(value: object) -> None:
    """Prints a result on stdout as JSON; NaN and infinity, which JSON lacks, become null."""
    print(json.dumps(_plain(value), indent=2, ensure_ascii=False))


def format_table(rows: Sequence[Mapping[str, object]], columns: Sequence[str] | None = None) -> str:
    """Rows as an aligned text table: numbers to the right, floats with four significant digits.

    Args:
        rows: One mapping a line.
        columns: Which keys, in which order; by default all, as they first appear.
    """
    if columns is None:
        columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    numeric = [
        all(isinstance(row.get(column), (numbers.Real, type(None))) for row in rows) for column in columns
    ]
    widths = [max(len(text) for text in column) for column in zip(columns, *cells, strict=True)]
    lines = [list(columns), ["-" * width for width in widths], *cells]
    return "\n".join(
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def _parser(prog: str, verb: Verb) -> ArgumentParser:
    import jsonargparse

    class Parser(jsonargparse.ArgumentParser):
        def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
            return _help_as_typed(super().format_help(formatter))

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise jsonargparse.ArgumentError(None, message) from ex

    # The string under a dataclass field is that flag's help.
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    text, _, examples = inspect.cleandoc(verb.__doc__ or "").partition("\nExamples:\n")
    parser = Parser(
        prog=prog,
        description=text.split("\n\n", 1)[0].replace("\n", " "),
        epilog=f"examples:\n{textwrap.indent(textwrap.dedent(examples), '  ')}" if examples else None,
        formatter_class=_formatter(),
        exit_on_error=False,
        allow_abbrev=False,
    )
    positional = [
        parameter.name
        for parameter in inspect.signature(verb).parameters.values()
        if parameter.kind is not parameter.KEYWORD_ONLY and parameter.default is parameter.empty
    ]
    hints = get_type_hints(verb)
    if inspect.isfunction(verb):
        # jsonargparse resolves annotations that are still text by running all that the module imports for
        # type checkers alone: lightning and more, for --help
        verb.__annotations__ = hints
    for name in positional:
        parser.add_argument(name, type=hints[name], help=_parameter_help(verb, name))
    parser.add_function_arguments(verb, as_group=False, skip=set(positional), fail_untyped=True)
    parser.add_argument(
        "--config", action="config", help="A YAML file with any of these values; flags override it."
    )
    return parser


def _formatter() -> type:
    import jsonargparse

    class Formatter(jsonargparse.DefaultHelpFormatter):
        """jsonargparse's help, with the examples' line breaks kept."""

        def __init__(self, prog: str) -> None:
            super().__init__(prog, max_help_position=32, width=100)

        def _fill_text(self, text: str, width: int, indent: str) -> str:
            if text.startswith("examples:"):
                return argparse.RawDescriptionHelpFormatter._fill_text(self, text, width, indent)
            return super()._fill_text(text, width, indent)

    return Formatter


def _help_as_typed(text: str) -> str:
    """``--max_time`` as ``--max-time``, and switches without their ``{true,false}``."""
    text = re.sub(r"\[(--[\w.]+) \{true,false\}\]", r"[\1]", text)
    text = text.replace(" {true,false}", " " * len(" {true,false}"))  # keeps the columns
    text = text.replace("Path to a configuration file.", "A YAML file with these values.")
    return re.sub(
        r"--([a-z0-9_]+)(?![\w.])",
        lambda flag: flag[0] if flag[1] == "print_config" else "--" + flag[1].replace("_", "-"),
        text,
    )


def _parameter_help(verb: Verb, name: str) -> str:
    import docstring_parser

    documented = docstring_parser.parse(verb.__doc__ or "").params
    return next((entry.description or "" for entry in documented if entry.arg_name == name), "")


def _normalised(parser: ArgumentParser, argv: Sequence[str]) -> list[str]:
    """Hyphens in flag names as underscores, a bare switch as ``--flag=true``, a list's words in brackets."""
    hints = {
        option: getattr(action, "_typehint", None)
        for action in parser._actions
        for option in action.option_strings
    }
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word.startswith("--") and len(word) > 2:
            flag, equals, value = word.partition("=")
            word = "--" + flag[2:].replace("-", "_") + equals + value
            following = rest[0].lower() if rest else ""
            if hints.get(word) is bool and following not in ("true", "false"):
                word += "=true"
            elif (
                _is_list(hints.get(word))
                and following not in ("", "null")
                and not following.startswith(("[", "--"))
            ):
                n = next((i for i, one in enumerate(rest) if one.startswith("--")), len(rest))
                word += f"=[{','.join(rest[:n])}]"
                del rest[:n]
        words.append(word)
    return words


def _is_list(hint: Any) -> bool:
    """Whether it is a list and nothing else, None aside: a word may be the name of a preset."""
    options = (hint,) if get_origin(hint) is list else get_args(hint)
    return bool(options) and all(get_origin(one) is list for one in options if one is not type(None))


def _one_sentence(message: str, parser: ArgumentParser) -> str:
    """jsonargparse's message in the words of the command line."""
    flags = [option for action in parser._actions for option in action.option_strings]
    if unknown := re.match(r"unrecognized arguments: (\S+)", message):
        word = unknown[1]
        if not word.startswith("--"):
            return f"unexpected word {word!r}"
        name = word.partition("=")[0]
        return _help_as_typed(f"unknown flag {name}{did_you_mean(name, flags)}")
    if missing := re.match(r"the following arguments are required: (.*)", message):
        names = [name.strip() for name in missing[1].split(",")]
        shown = [f"--{name}" if f"--{name}" in flags else name.upper() for name in names]
        return _help_as_typed(f"{', '.join(shown)} {'is' if len(shown) == 1 else 'are'} required")
    if bad := re.match(r'Parser key "([^"]+)":\s*(.*)', message, re.DOTALL):
        reason = re.sub(r"<class '([\w.]+)'>", r"\1", bad[2]).replace("typing.", "")
        if simple := re.match(r"Expected an? (.+?)\. Got value: (.*)", reason, re.DOTALL):
            choices = re.match(r"Literal\[(.*)\]", simple[1])
            wanted = f"one of {choices[1]}" if choices else simple[1]
            reason = f"expected {wanted}, got {simple[2]!r}"
        key = f"--{bad[1]}" if f"--{bad[1]}" in flags else bad[1].upper()
        return _help_as_typed(f"{key}: {_one_line(reason)}")
    return _help_as_typed(_one_line(message.replace("argument --", "--")))


def _one_line(message: str) -> str:
    return " ".join(message.split())


def _overview(prog: str, verbs: Mapping[str, Verb], description: str, examples: str) -> str:
    width = max(len(name) for name in verbs)
    lines = [f"usage: {prog} VERB [flags]", ""]
    if description:
        lines += [description, ""]
    lines.append("verbs:")
    for name, verb in verbs.items():
        lines.append(f"  {name:<{width}}  {inspect.cleandoc(verb.__doc__ or '').partition(chr(10))[0]}")
    lines += ["", f"{prog} VERB --help lists a verb's flags."]
    if examples:
        lines += ["", "examples:", textwrap.indent(inspect.cleandoc(examples), "  ")]
    return "\n".join(lines)


def _fail(message: str, status: int) -> int:
    sys.stdout.flush()
    print(f"error: {_one_line(message)}", file=sys.stderr)
    return status


def _is_backend_unavailable(error: Exception) -> bool:
    backend = sys.modules.get("mambakit.kernels.backend")  # loaded, if an op raised it
    return backend is not None and isinstance(error, backend.BackendUnavailableError)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
        return f"{float(value):.4g}"
    return str(value)
