"""Short cuts past IPython's machinery, for what it would leave as it is.

Most of the time of a small command goes into looking for IPython syntax in
plain Python, and for rich representations of plain numbers. Both answers are
known beforehand where the shell is as it was made; in doubt these functions
say so, and IPython itself is asked.
"""

from __future__ import annotations

import re
from typing import Any

from IPython.core.autocall import IPyAutocall
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.macro import Macro

#: What IPython's transformations look for: escapes, help, prompts.
_SYNTAX = re.compile(
    r"""\?                                       # help
      | ^\s*[%!/,;]                             # escapes at the start of a line
      | =\s*[%!]                                # or of what is assigned
      | ^\s*(>>>|\.\.\.|In\s*\[|\[nav\]|\[ins\]) # prompts
      | PYTHON-MODE                              # a mark of Emacs
      | [ \t\f\r\v]$                             # blanks it may strip
    """,
    re.MULTILINE | re.VERBOSE,
)
_WORD = re.compile(r"[^\W\d]\w*")
#: Types whose plain text is their repr, and that have no other form.
_SIMPLE = (int, float, bool, str, bytes)


class ShortCuts:
    """The short cuts of one shell.

    Parameters
    ----------
    ip : InteractiveShell
        As it was made: what users add to it later turns the short cuts off.
    """

    def __init__(self, ip: InteractiveShell) -> None:
        self._ip = ip
        self._transformers = self._all_transformers()
        display = ip.display_formatter
        text = display.formatters["text/plain"]
        self._printers = {kind: text.type_printers.get(kind) for kind in _SIMPLE}
        # Each look at an attribute of a formatter costs 0.5 us, so they are looked at when they change.
        self._formatters: list[Any] = []
        self._text_printers: dict[Any, Any] = {}
        self._other_printers: list[dict[Any, Any]] = []
        self._usual = False
        self._seen = False
        for formatter in (display, *self._all_formatters()):
            formatter.observe(self._changed)

    def _all_transformers(self) -> list[Any]:
        ip, manager = self._ip, self._ip.input_transformer_manager
        prefilter = ip.prefilter_manager
        return [
            *manager.cleanup_transforms,
            *manager.line_transforms,
            *manager.token_transformers,
            *ip.input_transformers_post,
            *prefilter.transformers,
            *prefilter.checkers,
        ]

    def _all_formatters(self) -> list[Any]:
        display = self._ip.display_formatter
        special = (display.ipython_display_formatter, display.mimebundle_formatter)
        return [*special, *display.formatters.values()]

    def _changed(self, change: object) -> None:
        self._seen = False

    def _look(self) -> None:
        display = self._ip.display_formatter
        text = display.formatters["text/plain"]
        self._formatters = list(display.formatters.values())
        self._text_printers = text.type_printers
        self._other_printers = [each.type_printers for each in self._all_formatters() if each is not text]
        everything = display.active_types == display.format_types
        self._usual = bool(everything and text.enabled and text.float_format == "%r")
        self._seen = True

    def translate(self, code: str) -> str | None:
        """What ``transform_cell(code)`` returns, where that is plain to see; None: ask it."""
        line = code[:-1] if code.endswith("\n") else code
        if not line or line[0].isspace() or line[-1].isspace() or _SYNTAX.search(line):
            return None
        if "\n" not in line and not self._is_plain_line(line):
            return None
        if self._ip.autocall or self._all_transformers() != self._transformers:
            return None
        return line + "\n"

    def _is_plain_line(self, line: str) -> bool:
        """Whether a single line is no magic without its escape, no macro and no ``exit``."""
        first = _WORD.match(line)
        if first is None:
            return True
        word = first.group()
        if word in self._ip.user_ns:
            return not isinstance(self._ip.user_ns[word], (IPyAutocall, Macro))
        return self._ip.find_line_magic(word) is None

    def format(self, value: Any) -> dict[str, str] | None:
        """The MIME bundle of a plain number or text; None: ask the formatters."""
        kind = type(value)
        if kind not in self._printers:
            return None
        if not self._seen or list(self._ip.display_formatter.formatters.values()) != self._formatters:
            self._look()
        if not self._usual or self._text_printers.get(kind) is not self._printers[kind]:
            return None
        for printers in self._other_printers:
            if kind in printers:
                return None
        try:
            return {"text/plain": repr(value)}
        except ValueError:  # an int of too many digits
            return None
