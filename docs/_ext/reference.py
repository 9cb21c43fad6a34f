"""The reference, from the code: public names with their docstrings, and what every command says of itself.

A page holds blocks, in the place of which is written when the site is built:

- ``public``, a module, and names below it: the documentation of those names, or of all that it hands on or defines;
- ``families``, a package: all that it hands on from modules below it, a heading for each of them, with what it says of
  itself; those that are named come first;
- ``commands``: the help of every command.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject

BLOCK = re.compile(r"^```\{(public|families|commands)\} ?(.*)\n((?:[^`].*\n)*)```$", flags=re.MULTILINE)
ONE_LINER = re.compile(r"(Raises|Returns|Source|Differs from): +(\S.*)")


@dataclass(frozen=True)
class Name:
    """A public name of a module, the module that defines it, and the text below it if it is a constant."""

    module: str
    name: str
    origin: str
    text: str = ""

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


def body_of(module: str) -> list[ast.stmt]:
    return ast.parse(Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8")).body


@functools.cache
def defined(module: str) -> dict[str, Name]:
    """What a module defines at its top: functions, classes, and constants with a text below them."""
    found, body = {}, body_of(module)
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = Name(module, node.name, module)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(following, ast.Expr):
            name = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
            found[name] = Name(module, name, module, inspect.cleandoc(ast.literal_eval(following.value)))
    return {name: each for name, each in found.items() if not name.startswith("_")}


@functools.cache
def public(module: str) -> dict[str, Name]:
    """What a package hands on by lines such as ``from ... import name as name``, or else what a module defines."""
    nodes = [node for top in body_of(module) for node in ast.walk(top)]
    handed = {
        alias.name: importlib.util.resolve_name("." * node.level + node.module, module)
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if alias.asname == alias.name and not alias.name.startswith("_")
    }
    texts = {name: defined(origin).get(name) for name, origin in handed.items()}
    names = {name: Name(module, name, handed[name], found.text if found else "") for name, found in texts.items()}
    return names or defined(module)


def chosen(kind: str, module: str, listed: str) -> list[Name]:
    """The names that a block is of."""
    if kind == "commands":
        return []
    package = module.removesuffix(".methods")
    known = public(package)
    if kind == "families":
        return [each for each in known.values() if each.origin.startswith(f"{module}.")]
    return [known.get(name) or Name(module, name, module) for name in listed.split()] or list(known.values())


def described(each: Name) -> str:
    """A name's documentation, as a directive of reStructuredText."""
    found = getattr(importlib.import_module(each.module), each.name)
    if inspect.isclass(found):
        members = "" if ".integrations." in each.module else "   :members:\n"  # those are what its library calls
        return f".. autoclass:: {each}\n{members}"
    if inspect.isfunction(found):
        vars(found).pop("__signature__", None)  # `tutelage.distill` lists all settings in it: too many for a page
        return f".. autofunction:: {each}\n"
    if not each.text:
        raise ValueError(f"{each} is a constant without a text below it: write one")
    return f".. py:data:: {each}\n\n{textwrap.indent(each.text, '   ')}\n"


def of_names(names: list[Name]) -> str:
    return "```{eval-rst}\n" + "\n".join(map(described, names)) + "```\n"


def family(origin: str, names: list[Name]) -> str:
    title = origin.rpartition(".")[2].replace("_", " ").capitalize()
    said = inspect.getdoc(importlib.import_module(origin))
    return f"## {title}\n\n```{{eval-rst}}\n{said}\n```\n\n{of_names(names)}"


def command_help(command: Any, context: typer.Context) -> list[str]:
    """A command's help, as parts of Markdown."""
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    records = [each.get_help_record(context) for each in command.get_params(context)]
    example = (command.epilog or "").removeprefix("Example: ")
    return [
        command.help,
        f"```console\n$ {usage}\n```",
        "\n".join(f"- `{record[0]}`: {record[1]}" for record in records if record),
        *([f"Example: `{example}`"] if example else []),
    ]


def commands() -> str:
    from tutelage.cli.app import app

    whole = typer.main.get_command(app)
    context = typer.Context(whole, info_name="tutelage")
    known = {f"tutelage {name}": each for name, each in whole.commands.items() if not each.hidden}
    firsts = [
        f"- [{name}](#{name.replace(' ', '-')}): {each.help.partition(chr(10))[0]}" for name, each in known.items()
    ]
    parts = [*command_help(whole, context), "\n".join(firsts)]
    for name, each in known.items():
        inner = typer.Context(each, parent=context, info_name=each.name)
        parts += [f"## {name}", *command_help(each, inner)]
    return "\n\n".join(parts)


def written(block: re.Match[str]) -> str:
    kind, module, listed = block.groups()
    if kind == "commands":
        return commands()
    names = chosen(kind, module, listed)
    if kind == "public":
        return of_names(names)
    first = [f"{module}.{name}" for name in listed.split()]
    origins = dict.fromkeys([*first, *(each.origin for each in names)])
    return "\n".join(family(origin, [each for each in names if each.origin == origin]) for origin in origins)


def write_blocks(app: Sphinx, name: str, source: list[str]) -> None:
    source[0] = BLOCK.sub(written, source[0])


def one_liners(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Sections of one paragraph become fields, as napoleon makes of those that are lists."""
    inside = False
    for place, line in enumerate(lines):
        begins = ONE_LINER.match(line)
        inside = bool(line and (begins or inside))
        if begins:
            lines[place] = f":{begins[1]}: {begins[2]}"
        elif inside:
            lines[place] = f"    {line}"


def generated(app: Sphinx, env: Any, *changes: Any) -> list[str]:
    """The pages that change with the code."""
    return [name for name in env.found_docs if name.startswith("api/")]


class Unannotated(ast.NodeTransformer):
    """``Annotated[float, ...]`` is a float to whoever reads."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        self.generic_visit(node)
        return node.slice.elts[0] if ast.unparse(node.value).endswith("Annotated") else node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        inner = self.visit(node.operand)  # a tilde, by which Sphinx shortens a name, stands before names alone
        return ast.UnaryOp(node.op, inner) if isinstance(inner, ast.Attribute | ast.Subscript | ast.Constant) else inner


def readable(app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returns: str) -> Any:
    """A signature as Sphinx can read it: without objects that are no Python, and what only machines look at."""
    if not signature:
        return None
    if hasattr(obj, "model_fields"):  # those of a recipe are a page of their own
        return "", returns
    try:
        function = ast.parse(f"def f{re.sub('<[^<>]*>', '...', signature)}: pass").body[0]
    except SyntaxError:  # what pydantic is told of a field need not be Python; the fields are listed below
        return "", returns
    return f"({ast.unparse(Unannotated().visit(function.args))})", returns


def dashes(app: Sphinx, page: nodes.document) -> None:
    """Sphinx writes two hyphens between a parameter and what it is."""
    for text in [each for each in page.findall(nodes.Text) if each == " -- "]:
        text.parent.replace(text, nodes.Text(" \N{EN DASH} "))


def skip_fields(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """The fields of a named tuple are told in its docstring; what pydantic is told is nobody's."""
    return True if type(obj).__name__ == "_tuplegetter" or name.endswith("model_config") else None


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("env-get-outdated", generated)
    app.connect("source-read", write_blocks)
    app.connect("autodoc-process-docstring", one_liners, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", readable)
    app.connect("doctree-read", dashes)
    app.connect("autodoc-skip-member", skip_fields)
    for kind in PyObject.doc_field_types:
        if kind.name == "variable":
            kind.label = "Attributes"
    return {"parallel_read_safe": True}
