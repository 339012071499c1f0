"""Turns the option parser's errors into one sentence: value, rule, nearest valid name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from resscale.errors import UserInputError, nearest
from resscale.training.precision import precision_name

_UNKNOWN = (
    re.compile(r"unrecognized arguments: --(?P<key>[^\s=]+)"),
    re.compile(r"Group '(?P<group>[^']+)' does not accept option '(?P<key>[^']+)'"),
    re.compile(r"Option '(?P<key>[^']+)' is not accepted"),
)
_MISSING_FILE = re.compile(r"File does not exist: '(?P<path>[^']+)'")
_KEY = r'key "(?P<key>[^"]+)".*'
_LITERAL = re.compile(_KEY + r"Literal\[(?P<choices>[^\]]+)\]. Got value: (?P<value>[^\n]*)", re.S)
# An option of a class: the parser names the class's own option apart from it.
_OF_A_CLASS = re.compile(r"NestedArg\(key='(?P<key>[^']+)'")
_WHAT_EACH_TYPE_SAID = re.compile(
    r"Union subtypes\n.*\nErrors:\n(?P<errors>.*)\nGiven value type:", re.S
)
# What was wrong with one option of a class, inside of what was wrong with the class.
_INSIDE_A_CLASS = re.compile(
    r"key \"(?P<key>[^\"]+)\".*Problem with given class_path [^\n]*:\n\s*Parser (?P<inside>key .*?)"
    r"\n  Given value type:",
    re.S,
)
_TYPE = re.compile(_KEY + r"Expected an? (?P<type>.+?)\. Got value: (?P<value>.*)", re.S)
_UNION = re.compile(_KEY + r"Subtypes: \[(?P<types>.*?)\]\n.*Given value: (?P<value>.*)", re.S)
_TYPE_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "NoneType": "null",
    "dict": "a mapping",
}


def explain_parser_error(text: str, options: Iterable[str]) -> str:
    """Return a parser's message as a user would want to read it.

    Args:
        text: what the parser says.
        options: the dotted names of all options.
    """
    for pattern in _UNKNOWN:
        if found := pattern.search(text):
            parts = found.groupdict()
            key = f"{parts['group']}.{parts['key']}" if parts.get("group") else parts["key"]
            return f"{key!r} is not an option.{_nearest_option(key, options)}"
    if found := _MISSING_FILE.search(text):
        return _missing_config(found["path"])
    if found := _LITERAL.search(text):
        choices = [choice.strip(" '\"") for choice in found["choices"].split(",")]
        value = found["value"].strip()
        nested = _OF_A_CLASS.search(text)
        key = f"{found['key']}.{nested['key']}" if nested else found["key"]
        return f"{key}={value} is not one of {', '.join(choices)}.{nearest(value, choices)}"
    if found := _INSIDE_A_CLASS.search(text):
        return f"{found['key']}.{_explain_type(found['inside'])}"
    if explained := _explain_type(text):
        return explained
    if found := re.search(r"Path is not a file: '(?P<path>[^']+)'", text):
        return f"--config {found['path']} is no file; name a YAML file."
    if text.startswith("Unexpected config"):
        return "the configuration is empty, or no mapping of options to values."
    if "Problems parsing config" in text:
        return f"the configuration is not valid YAML: {' '.join(text.split()[3:])}."
    return " ".join(text.split())


def _explain_type(text: str) -> str | None:
    """Return what an option must be; None where the text is about something else."""
    for pattern, group in ((_TYPE, "type"), (_UNION, "types")):
        if found := pattern.search(text):
            value = found["value"].strip()
            if found["key"] == "trainer.precision":
                # Lightning's type has names that we refuse.
                try:
                    precision_name(value)
                except UserInputError as error:
                    return str(error)
            return f"{found['key']}={value} is not valid; it must be {_types(found[group])}."
    return None


def explain_refusal(text: str) -> str | None:
    """Return why a class refused its options; None for what is not the parser's report of that.

    Args:
        text: of the error that the parser raises when it makes an object.
    """
    found = _WHAT_EACH_TYPE_SAID.search(text)
    if found is None:
        return None
    # Of a name or a class, the class comes last.
    return " ".join(re.split(r"(?:^|\n)  - ", found["errors"])[-1].split())


def _nearest_option(key: str, options: Iterable[str]) -> str:
    """Suggest an option: the whole dotted name, or one that ends in the name given."""
    names = list(options)
    if found := nearest(key, names):
        return found
    leaf = key.rpartition(".")[2]
    same = [name for name in names if name.rpartition(".")[2] == leaf]
    if same:
        return f" Did you mean {same[0]!r}?"
    groups = {name.partition(".")[0] for name in names}
    return nearest(key.partition(".")[0], groups) or " See --help_all for all options."


def _missing_config(path: str) -> str:
    folder = Path(path).parent
    beside = [str(file) for file in sorted(folder.glob("*.y*ml"))] if folder.is_dir() else []
    return f"there is no file {path}.{nearest(path, beside)}"


def _types(text: str) -> str:
    choices = re.findall(r"Literal\[([^\]]*)\]", text)
    if choices:
        return f"one of {', '.join(choices)}".replace("'", "")
    names = re.findall(r"<class '(?:\w+\.)*(\w+)'>", text) or [text.strip()]
    return " or ".join(dict.fromkeys(_TYPE_NAMES.get(name, name) for name in names))
