"""Docstrings in reStructuredText as Markdown for mkdocstrings: roles, formulas (MathML), warnings, tables, code."""

import re
import textwrap
from typing import Any

import griffe
from latex2mathml.converter import convert

_INDENTED = r"(?P<body>(?:(?P=indent) +[^\n]+\n|\n)+)"
_BLOCK = re.compile(r"^(?P<indent> *)\.\. (?P<name>math|note|warning)::(?P<first>[^\n]*)\n" + _INDENTED, re.M)
_LITERAL = re.compile(r"^(?P<indent> *)(?P<text>[^\n]*\S)?::\n\n" + _INDENTED, re.M)
_TABLE = re.compile(r"^ *=+(?:  =+)+\n(?P<rows>(?:[^\n]+\n)+?) *=+(?:  =+)+\n", re.M)


class Restructured(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a module, a class, a function or an attribute."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """Return a docstring as Markdown."""
    text = _BLOCK.sub(_block, text + "\n")
    text = _TABLE.sub(_table, text)
    text = _LITERAL.sub(_literal, text)
    text = re.sub(r":math:`([^`]+)`", lambda found: _formula(found[1], "inline"), text)
    text = re.sub(r":(?:class|func|meth|data|attr|mod):`~?([^`]+)`", lambda found: f"`{found[1].split('.')[-1]}`", text)
    return text.rstrip("\n")


def _block(found: re.Match[str]) -> str:
    indent, body = found["indent"], f"{found['first'].strip()}\n{textwrap.dedent(found['body'])}".strip()
    if found["name"] == "math":
        return f"{indent}{_formula(' '.join(body.split()), 'block')}\n\n"
    return f"{indent}!!! {found['name']}\n\n{textwrap.indent(body, indent + '    ')}\n\n"


def _table(found: re.Match[str]) -> str:
    lines = [line for line in found["rows"].splitlines() if not line.startswith("=")]
    rows = [["", ""], ["---", "---"], *(re.split(r" {2,}", line.strip(), maxsplit=1) for line in lines)]
    return "\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows) + "\n"


def _literal(found: re.Match[str]) -> str:
    body = textwrap.dedent(found["body"]).strip("\n")
    before = f"{found['indent']}{found['text']}:\n\n" if found["text"] else ""
    return before + textwrap.indent(f"```python\n{body}\n```", found["indent"]) + "\n\n"


def _formula(source: str, display: str) -> str:
    return convert(source, display=display).replace("\n", " ")
