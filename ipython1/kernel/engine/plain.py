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
        text = ip.display_formatter.formatters["text/plain"]
        self._printers = {kind: text.type_printers.get(kind) for kind in _SIMPLE}

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
        display = self._ip.display_formatter
        text = display.formatters["text/plain"]
        if text.type_printers.get(kind) is not self._printers[kind] or text.float_format != "%r":
            return None
        others = (
            display.ipython_display_formatter,
            display.mimebundle_formatter,
            *display.formatters.values(),
        )
        if any(kind in formatter.type_printers for formatter in others if formatter is not text):
            return None
        if display.active_types != display.format_types or not text.enabled:
            return None
        try:
            return {"text/plain": repr(value)}
        except ValueError:  # an int of too many digits
            return None
