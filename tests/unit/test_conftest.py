"""The fixture that fails a test for the errors it logs."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger, LogLevel
from twisted.python import log

from ..conftest import ERRORS_KEPT, LoggedErrors


def test_failure_of_a_dropped_deferred_is_seen(logged_errors: LoggedErrors) -> None:
    deferred: Deferred[None] = fail(ZeroDivisionError("lost"))
    deferred.addCallback(print)
    del deferred
    [event] = logged_errors.flush(ZeroDivisionError)
    assert "lost" in str(event["log_failure"].value)
    assert logged_errors.count == 0


def test_both_kinds_of_logging_are_seen(logged_errors: LoggedErrors) -> None:
    Logger().error("new {what}", what="style")
    log.err(ValueError("old style"))
    Logger().info("harmless")
    assert logged_errors.count == 2
    report = logged_errors.report()
    assert "new style" in report
    assert "old style" in report
    assert len(logged_errors.flush()) == 2


def test_flush_leaves_other_types(logged_errors: LoggedErrors) -> None:
    log.err(ValueError("one"))
    log.err(KeyError("two"))
    assert len(logged_errors.flush(KeyError)) == 1
    assert logged_errors.count == 1
    logged_errors.flush()


def test_the_report_is_bounded() -> None:
    errors = LoggedErrors()
    for number in range(100):
        errors({"log_level": LogLevel.error, "log_format": "x" * 100_000, "number": number})
    assert len(errors.kept) == ERRORS_KEPT
    assert errors.report().startswith("100 error(s)")
    assert len(errors.report()) < 20_000


def test_ipython1_dir_is_temporary(ipython1_dir: Path) -> None:
    assert os.environ["IPYTHON1_DIR"] == str(ipython1_dir)
    assert ipython1_dir.stat().st_mode & 0o077 == 0
    assert Path.home() not in ipython1_dir.parents
