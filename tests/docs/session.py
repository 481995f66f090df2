"""Runs the cells of a transcript in IPython; the process behind `test_transcripts`.

Reads a JSON list of source texts from standard input, and writes for each a
line of JSON: the number IPython gave it, and what it printed.
"""

from __future__ import annotations

import io
import json
import os
import sys

from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config


def main() -> None:
    """Run all cells."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    sources = json.load(sys.stdin)
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "NoColor"
    shell = InteractiveShell.instance(config=config)
    for source in sources:
        number = shell.execution_count
        sys.stdout = sys.stderr = screen = io.StringIO()
        try:
            shell.run_cell(source, store_history=True)
        finally:
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        json.dump([number, screen.getvalue()], answers)
        answers.write("\n")
        answers.flush()


if __name__ == "__main__":
    main()
