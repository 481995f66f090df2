"""A Sphinx extension that takes what a page shows from the code, so that it cannot say anything else.

``.. records-table::``
    Every record of the wire protocol, from `ipython1.kernel.wire.records`.
``.. facets-table:: records`` or ``questions`` or ``furls``
    Who may send, ask, or come in, from `ipython1.kernel.controller.facets`.
``.. module-docstring:: NAME``
    The docstring of a module, with its state table.
``:constant:`MODULE.NAME```
    The value of a constant; bytes in KiB or MiB.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole

from ipython1.kernel.controller import facets
from ipython1.kernel.wire import records


def record_rows() -> Iterator[tuple[str, str, str, str]]:
    """Tag, name, fields and meaning of every record, by tag."""
    classes = [value for value in vars(records).values() if isinstance(value, type)]
    found = [cls for cls in classes if issubclass(cls, records.Record) and cls is not records.Record]
    for cls in sorted(found, key=lambda cls: cls.tag):
        fields = ", ".join(f"{field.name}: {field.type}" for field in dataclasses.fields(cls))  # type: ignore[arg-type]
        yield str(cls.tag), f"``{cls.__name__}``", f"``{fields}``", inspect.cleandoc(cls.__doc__ or "")


def facet_rows(table: str) -> Iterator[tuple[str, ...]]:
    """The heading, then a row for each record, question or FURL: a cell for each kind of peer."""
    kinds = tuple(facets.RECORDS)
    allowed: dict[str, set[str]] = {}
    if table == "furls":
        allowed = {furl: set(admitted) for furl, admitted in facets.ADMITTED.items()}
    elif table == "questions":
        for kind, questions in facets.QUESTIONS.items():
            for what in questions:
                allowed.setdefault(what, set()).add(kind)
    else:
        for cls in sorted(set().union(*facets.RECORDS.values()), key=lambda cls: cls.tag):
            allowed[cls.__name__] = {kind for kind in kinds if cls in facets.RECORDS[kind]}
    yield (table.removesuffix("s"), *kinds)
    names = allowed if table != "questions" else sorted(allowed, key=lambda what: (-len(allowed[what]), what))
    for name in names:
        yield (f"``{name}``", *("yes" if kind in allowed[name] else "" for kind in kinds))


class _Table(SphinxDirective):
    def _table(self, widths: Sequence[int], rows: Iterator[tuple[str, ...]]) -> nodes.table:
        """A table; its first row is the heading."""
        group = nodes.tgroup(cols=len(widths))
        group += [nodes.colspec(colwidth=width) for width in widths]
        group += nodes.thead("", self._row(next(rows)))
        group += nodes.tbody("", *map(self._row, rows))
        return nodes.table("", group)

    def _row(self, cells: tuple[str, ...]) -> nodes.row:
        return nodes.row("", *[nodes.entry("", *self.parse_text_to_nodes(text)) for text in cells])


class RecordsTable(_Table):
    """The table of records."""

    def run(self) -> Sequence[nodes.Node]:
        """A table with one row per record."""
        heading = iter([("tag", "record", "fields", "meaning")])
        return [self._table((1, 2, 5, 8), itertools.chain(heading, record_rows()))]


class FacetsTable(_Table):
    """Who may do what."""

    required_arguments = 1

    def run(self) -> Sequence[nodes.Node]:
        """A table with a column for each kind of peer."""
        return [self._table((2, 1, 1, 1, 1, 1), facet_rows(self.arguments[0]))]


class ModuleDocstring(SphinxDirective):
    """The docstring of a module."""

    required_arguments = 1

    def run(self) -> Sequence[nodes.Node]:
        """The docstring without its first line, which the page says in its own words."""
        module = importlib.import_module(self.arguments[0])
        lines = inspect.cleandoc(module.__doc__ or "").splitlines()[1:]
        node = nodes.container()
        self.state.nested_parse(StringList(lines, source=module.__file__), 0, node)
        return node.children


class Constant(SphinxRole):
    """The value of a constant."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """The number as text."""
        module, _, name = self.text.rpartition(".")
        value = getattr(importlib.import_module(module), name)
        return [nodes.Text(number(value))], []


def number(value: float) -> str:
    """A number in words: ``'8 MiB'`` where it is many bytes."""
    for size, unit in ((2**20, "MiB"), (2**10, "KiB")):
        if isinstance(value, int) and value >= size and value % size == 0:
            return f"{value // size} {unit}"
    return f"{value:g}"


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("records-table", RecordsTable)
    app.add_directive("facets-table", FacetsTable)
    app.add_directive("module-docstring", ModuleDocstring)
    app.add_role("constant", Constant())
    return {"parallel_read_safe": True}
