"""A Grid Engine of one host, started by a test as root, with ports and folders of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import PATIENCE, until
from tests.services.slurm import end_of, free_port

#: As Debian has it.
PROGRAMS = Path("/usr/lib/gridengine")
SHARED = Path("/usr/share/gridengine")
INSTALLED = Path("/var/lib/gridengine")
REQUIRED = os.environ.get("IPYTHON1_REQUIRE_SERVICES") == "1"
SLOTS = 8

BOOTSTRAP = {
    "admin_user": "none",
    "spooling_params": "{folder}/spool",
    "qmaster_spool_dir": "{folder}/qmaster",
}
CONFIGURATION = {
    "execd_spool_dir": "{folder}/execd",
    "min_uid": "0",
    "min_gid": "0",
    "mailer": "/bin/true",
    "reporting_params": "accounting=true reporting=false flush_time=00:00:01 accounting_flush_time=00:00:00 "
    "joblog=false sharelog=00:00:00",
}
SCHEDULER = {
    "schedule_interval": "0:0:1",
    "flush_submit_sec": "1",
    "flush_finish_sec": "1",
    "load_formula": "-slots",
}
QUEUE = {
    "qname": "all.q",
    "hostlist": "localhost",
    "slots": str(SLOTS),
    "pe_list": "smp",
    "load_thresholds": "NONE",
    "shell_start_mode": "unix_behavior",
}
ENVIRONMENT = """\
pe_name smp
slots 999
user_lists NONE
xuser_lists NONE
start_proc_args NONE
stop_proc_args NONE
allocation_rule $pe_slots
control_slaves FALSE
job_is_first_task TRUE
urgency_slots min
accounting_summary FALSE
qsort_args NONE
"""
HOST = """\
hostname localhost
load_scaling NONE
complex_values NONE
user_lists NONE
xuser_lists NONE
projects NONE
xprojects NONE
usage_scaling NONE
report_variables NONE
"""


def command(*words: str) -> str:
    """What a command of Grid Engine prints."""
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=PATIENCE)
    return done.stdout + done.stderr


def left() -> list[str]:
    """Ids of the jobs in the queue, those that wait and those that run."""
    return re.findall(r"^ *(\d+) ", command("qstat"), flags=re.MULTILINE)


def changed(text: str, values: dict[str, str], folder: Path) -> str:
    """A configuration, lines of ``name value``, with some of its values changed."""
    for name, value in values.items():
        line = f"{name} {value.format(folder=folder)}"
        text, count = re.subn(rf"^{name}\s.*(?:\\\n.*)*$", line, text, flags=re.MULTILINE)
        assert count == 1, name
    return text


def _install(folder: Path) -> None:
    """What Debian's own script for a new cluster does, in `folder`."""
    common = folder / "root" / "cell" / "common"
    common.mkdir(parents=True)
    for name in ("bin", "lib", "utilbin", "util"):
        (folder / "root" / name).symlink_to(INSTALLED / name)
    for name in ("spool", "qmaster/job_scripts", "execd"):
        (folder / name).mkdir(parents=True)
    (common / "bootstrap").write_text(changed((SHARED / "default-bootstrap").read_text(), BOOTSTRAP, folder))
    (common / "act_qmaster").write_text("localhost\n")
    (common / "host_aliases").write_text(f"localhost {os.uname().nodename}\n")
    configuration = folder / "configuration"
    configuration.write_text(changed((SHARED / "default-configuration").read_text(), CONFIGURATION, folder))
    resources = SHARED / "util" / "resources"
    command(str(PROGRAMS / "spoolinit"), "berkeleydb", "libspoolb", f"{folder}/spool", "init")
    for what, value in (
        ("configuration", configuration),
        ("complexes", resources / "centry"),
        ("usersets", resources / "usersets"),
        ("managers", "root"),
    ):
        command(str(PROGRAMS / "spooldefaults"), what, str(value))


def _configure(folder: Path) -> None:
    """Say which hosts, queues and so on there are."""
    command("qconf", "-as", "localhost")
    for option, text in (
        ("-Ae", HOST),
        ("-Ap", ENVIRONMENT),
        ("-Aq", changed(command("qconf", "-sq"), QUEUE, folder)),
        ("-Msconf", changed(command("qconf", "-ssconf"), SCHEDULER, folder)),
    ):
        (folder / "in").write_text(text)
        command("qconf", option, f"{folder}/in")


def _answers(*words: str) -> str:
    try:
        return command(*words)
    except subprocess.CalledProcessError:  # it does not listen yet
        return ""


@pytest.fixture(scope="module")
def sge() -> Iterator[Path]:
    """A running Grid Engine: its folder. ``SGE_ROOT`` and others name it to all commands."""
    needed = (PROGRAMS / "sge_qmaster", PROGRAMS / "sge_execd", Path("/usr/bin/qsub"))
    missing = [str(each) for each in needed if not each.exists()]
    if missing or os.geteuid() != 0:
        reason = f"a Grid Engine of its own takes root, and {', '.join(missing) or 'nothing else'}"
        if REQUIRED:
            pytest.fail(reason)
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="ip1-sge-"))
    folder.chmod(0o755)
    processes: list[subprocess.Popen[bytes]] = []
    with pytest.MonkeyPatch.context() as patch, end_of(processes), (folder / "out").open("wb") as out:
        for name, value in {
            "SGE_ROOT": folder / "root",
            "SGE_CELL": "cell",
            "SGE_QMASTER_PORT": free_port(),
            "SGE_EXECD_PORT": free_port(),
            "SGE_CLUSTER_NAME": "ip1",
            "SGE_ND": 1,  # no daemons
        }.items():
            patch.setenv(name, str(value))
        _install(folder)

        def start(program: str) -> None:
            words = [str(PROGRAMS / program)]
            processes.append(subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out))

        start("sge_qmaster")
        until(lambda: _answers("qconf", "-sh"), f"the master; see {folder}")
        _configure(folder)
        start("sge_execd")
        until(lambda: re.search(r"all\.q@localhost .* lx", _answers("qstat", "-f")), f"a host; see {folder}")
        yield folder
    shutil.rmtree(folder)
