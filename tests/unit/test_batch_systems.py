"""What batch systems print, as their manuals and real ones have it, and what is made of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ipython1.launch.batch.htcondor import HTCondorSystem
from ipython1.launch.batch.job import Job
from ipython1.launch.batch.lsf import LSFSystem
from ipython1.launch.batch.pbs import PBSSystem
from ipython1.launch.batch.sge import SGESystem
from ipython1.launch.batch.slurm import SlurmSystem
from ipython1.launch.batch.system import (
    CANCELLED,
    DONE,
    FAILED,
    GONE,
    KILLED,
    MEMORY,
    NODE,
    PREEMPTED,
    RUNS,
    TIME,
    WAITS,
    Seen,
    System,
)

SLURM, PBS, SGE, LSF, CONDOR = SlurmSystem(), PBSSystem(), SGESystem(), LSFSystem(), HTCondorSystem()


class TorqueSystem(PBSSystem):
    """As where ``qstat --version`` says so."""

    is_torque = True  # type: ignore[assignment]


TORQUE = TorqueSystem()


def job(**facts: object) -> Job:
    common = {
        "name": "j",
        "engines": 2,
        "command": ["x"],
        "folder": Path("/r"),
        "stem": "s",
        "log": Path("/l"),
    }
    return Job(**{**common, **facts})  # type: ignore[arg-type]


# -- ids ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "output", "count", "keys"),
    [
        (SLURM, "17\n", 1, ["17"]),
        (SLURM, "17;cluster2\n", 1, ["17"]),
        (SLURM, "welcome to hpc\n17\n", 3, ["17_0", "17_1", "17_2"]),
        (PBS, "17.server.site\n", 1, ["17.server.site"]),
        (PBS, "17[].server\n", 2, ["17[0].server", "17[1].server"]),
        (TORQUE, "17\n", 1, ["17"]),
        (SGE, "17\n", 1, ["17"]),
        (SGE, "17.1-2:1\n", 2, ["17.1", "17.2"]),
        (LSF, "Job <17> is submitted to default queue <normal>.\n", 1, ["17"]),
        (LSF, "Job <17> is submitted to queue <gpu>.\n", 2, ["17[1]", "17[2]"]),
        (CONDOR, "17.0 - 17.0\n", 1, ["17.0"]),
        (CONDOR, "17.0 - 17.2\n", 3, ["17.0", "17.1", "17.2"]),
    ],
)
def test_ids(system: System, output: str, count: int, keys: list[str]) -> None:
    assert system.submitted(output, job(count=count)) == keys


@pytest.mark.parametrize("system", [SLURM, PBS, TORQUE, SGE, LSF, CONDOR])
@pytest.mark.parametrize(
    "output", ["", "Submitted", "job 17 it is", "17 18", "17\n18\n", "17.0 - 17.4\n17.0 - 17.4"]
)
def test_what_says_no_id(system: System, output: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        system.submitted(output, job())


def test_another_number_of_jobs_than_asked_for_is_no_answer() -> None:
    with pytest.raises(ValueError, match="other jobs"):
        CONDOR.submitted("17.0 - 17.3\n", job())


# -- Slurm -------------------------------------------------------------------------------


def test_slurm_says_what_jobs_do() -> None:
    # As Slurm 22.05 prints it for --Format=JobArrayID:40,State:20,exit_code:12,Reason:256
    lines = [
        ("17", "RUNNING", "0", "None"),
        ("18_0", "PENDING", "0", "Resources"),
        ("18_1", "PENDING", "0", "ReqNodeNotAvail, UnavailableNodes:n1"),
        ("19", "PENDING", "0", "None"),
        ("20", "COMPLETED", "0", "None"),
        ("21", "CANCELLED", "0", "None"),
        ("22", "TIMEOUT", "0", "TimeLimit"),
        ("23", "OUT_OF_MEMORY", "9", "OutOfMemory"),
        ("24", "NODE_FAIL", "0", "NodeDown"),
        ("25", "FAILED", "768", "NonZeroExitCode"),
        ("26", "FAILED", "9", "JobLaunchFailure"),
        ("27", "PREEMPTED", "0", "None"),
        ("28", "COMPLETING", "0", "None"),
        ("29", "SOMETHING_NEW", "0", "None"),
    ]
    output = "".join(f"{id:<40}{state:<20}{code:<12}{reason:<256}\n" for id, state, code, reason in lines)
    seen = SLURM.seen(output, "", 0, [])
    assert seen["17"] == seen["28"] == Seen(RUNS)
    assert seen["18_0"] == Seen(WAITS, "Resources")
    assert seen["18_1"] == Seen(WAITS, "ReqNodeNotAvail, UnavailableNodes:n1")
    assert seen["19"] == Seen(WAITS)
    how = {key: each.reason for key, each in seen.items() if key >= "20" and key != "28"}
    assert list(how.values()) == [DONE, CANCELLED, TIME, MEMORY, NODE, FAILED, KILLED, PREEMPTED, GONE]
    assert seen["25"].words == "failed with exit status 3"
    assert seen["26"].words == "was killed by signal 9 (SIGKILL)"


def test_slurm_may_know_none_of_the_jobs_any_more() -> None:
    assert SLURM.seen("", "slurm_load_jobs error: Invalid job id specified\n", 1, ["17"]) == {}
    with pytest.raises(ValueError, match="Unable to contact"):
        SLURM.seen(
            "", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n", 1, ["17"]
        )


def test_accounts_of_slurm_say_who_cancelled() -> None:
    output = "17|CANCELLED by 1000|0:15\n18_1|FAILED|3:0\n19|COMPLETED|0:0\n20|RUNNING|0:0\nnonsense\n"
    seen = SLURM.inquest(output)
    assert (seen["17"].reason, seen["18_1"].words) == (CANCELLED, "failed with exit status 3")
    assert (seen["19"].reason, seen["20"].phase) == (DONE, RUNS)
    assert SLURM.inquest("Slurm accounting storage is disabled\n") == {}


# -- PBS ---------------------------------------------------------------------------------


def pbs_block(key: str, **facts: object) -> str:
    return f"Job Id: {key}\n" + "".join(f"    {name} = {value}\n" for name, value in facts.items()) + "\n"


def test_pbs_says_what_jobs_do() -> None:
    output = (
        pbs_block("1.s", Job_Name="j", job_state="R", Variable_List="A=b,job_state=Q")
        + pbs_block("2.s", job_state="Q", comment="Not Running: Insufficient amount of resource: nc\n\tpus")
        + pbs_block("3[1].s", job_state="H")
        + pbs_block("4.s", job_state="F", Exit_status=0, substate=92)
        + pbs_block("5.s", job_state="F", Exit_status=3, substate=93)
        + pbs_block("6.s", job_state="F", Exit_status=271, substate=91)
        + pbs_block("7.s", job_state="F", Exit_status=-29)
        + pbs_block("8.s", job_state="F", Exit_status=-27)
        + pbs_block("9.s", job_state="F", substate=91)
        + pbs_block("A.s", job_state="C", exit_status=0)
        + pbs_block("B.s", job_state="E")
        + pbs_block("C.s", job_state="F", Exit_status=0, substate=91)
        + pbs_block("D.s", job_state="F", Exit_status=-1)
    )
    seen = PBS.seen(output, "", 0, [])
    assert seen["1.s"] == seen["B.s"] == Seen(RUNS)
    assert seen["2.s"] == Seen(WAITS, "Insufficient amount of resource: ncpus")
    assert seen["3[1].s"] == Seen(WAITS, "held")
    how = {key: each.reason for key, each in seen.items() if key[0] >= "4" and key[0] != "B"}
    assert list(how.values()) == [DONE, FAILED, CANCELLED, TIME, MEMORY, CANCELLED, DONE, CANCELLED, FAILED]
    assert seen["D.s"].words == "could not be started (Exit_status -1)"


def test_pbs_may_know_some_jobs_only() -> None:
    errors = "qstat: Unknown Job Id 2.s\n"
    assert PBS.seen(pbs_block("1.s", job_state="R"), errors, 153, []) == {"1.s": Seen(RUNS)}
    assert PBS.seen("", errors, 153, []) == {}
    with pytest.raises(ValueError, match="cannot connect"):
        PBS.seen("", "qstat: cannot connect to server s (errno=111)\n", 1, [])


def test_the_two_kinds_of_pbs_are_asked_otherwise() -> None:
    asked = job(count=3, cpus=2, memory=100)
    assert {"-J 0-2", "-l select=1:ncpus=4:mpiprocs=1:mem=100mb"} <= set(PBS.directives(asked))
    assert {"-t 0-2", "-l nodes=1:ppn=4,mem=100mb"} <= set(TORQUE.directives(asked))
    assert PBS.poll_command(["1.s"]) == ["qstat", "-f", "-x", "1.s"]
    assert TORQUE.poll_command(["1.s"]) == ["qstat", "-f", "1.s"]
    assert (PBS.spread(asked), TORQUE.spread(asked)) == ("pbsdsh --", "pbsdsh -u")


@pytest.mark.parametrize(
    ("said", "torque"),
    [
        ("echo pbs_version = 20.0.1", False),
        ("echo Version: 6.1.2 >&2; echo Commit: 661e >&2", True),
        (None, False),
    ],
)
def test_which_of_the_two_it_is(
    said: str | None, torque: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if said is not None:
        (tmp_path / "qstat").write_text(f"#!/bin/sh\n{said}\n")
        (tmp_path / "qstat").chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if said else str(tmp_path))
    assert PBSSystem().is_torque is torque


# -- Grid Engine -------------------------------------------------------------------------


def sge_job(id: int, state: str, tasks: str = "") -> str:
    tasks = f"<tasks>{tasks}</tasks>" if tasks else ""
    return f"<job_list state='x'><JB_job_number>{id}</JB_job_number><state>{state}</state>{tasks}</job_list>"


def test_grid_engine_says_what_jobs_do() -> None:
    # As SGE 8.1.9 prints it for -xml
    running = sge_job(1, "r") + sge_job(2, "r", "1") + sge_job(3, "dr")
    pending = sge_job(2, "qw", "2,4-8:2") + sge_job(4, "Eqw") + sge_job(5, "hqw")
    output = f"<job_info><queue_info>{running}</queue_info><job_info>{pending}</job_info></job_info>"
    seen = SGE.seen(f"<?xml version='1.0'?>\n{output}", "", 0, [])
    assert seen["1"] == seen["2.1"] == seen["3"] == Seen(RUNS)
    assert [key for key, each in seen.items() if each == Seen(WAITS)] == ["2.2", "2.4", "2.6", "2.8"]
    assert seen["4"] == Seen(WAITS, "it is in state Eqw; see qstat -j 4")
    assert seen["5"] == Seen(WAITS, "held")
    with pytest.raises(ValueError, match="unable to send message to qmaster"):
        SGE.seen("", "error: commlib error\nerror: unable to send message to qmaster\n", 1, [])


QACCT = """\
==============================================================
qname        all.q
jobnumber    {id}
taskid       {task}
failed       {failed}
exit_status  {status}
ru_wallclock 4s
"""


def test_accounts_of_grid_engine_say_how_jobs_ended() -> None:
    rows = [
        (1, "undefined", "0    ", "0"),
        (2, "1", "0    ", "3"),
        (2, "2", "100 : assumedly after job", "137                  (Killed)"),
        (3, "undefined", "37  : qmaster enforced h_rt, h_cpu, or h_vmem limit", "137"),
        (4, "undefined", "26  : opening input/output file", "0"),
        (5, "undefined", "0", "139"),
    ]
    output = "".join(QACCT.format(id=a, task=b, failed=c, status=d) for a, b, c, d in rows)
    seen = SGE.inquest(output)
    assert {key: each.reason for key, each in seen.items()} == {
        "1": DONE,
        "2.1": FAILED,
        "2.2": CANCELLED,
        "3": TIME,
        "4": FAILED,
        "5": KILLED,
    }
    assert seen["2.2"].words == "was cancelled, or killed by signal 9 (SIGKILL)"
    assert SGE.inquest("error: job id 17 not found\n") == {}
    assert SGE.inquest_command(["2.1", "2.2", "3"])[-2:] == ["2", "3"]


# -- LSF ---------------------------------------------------------------------------------


def test_lsf_says_what_jobs_do() -> None:
    output = "\n".join(
        [
            "1^0^RUN^-^-^-",
            "2^1^PEND^-^-^New job is waiting for scheduling;",
            "2^2^PSUSP^-^-^-",
            "3^0^DONE^-^-^-",
            "4^0^EXIT^3^-^-",
            "5^0^EXIT^130^TERM_OWNER: job killed by owner^-",
            "6^0^EXIT^140^TERM_RUNLIMIT: job killed after reaching LSF run time limit^-",
            "7^0^EXIT^137^TERM_MEMLIMIT: job killed after reaching LSF memory usage limit^-",
            "8^0^EXIT^139^TERM_UNKNOWN: unknown^-",
            "9^0^SSUSP^-^-^-",
        ]
    )
    seen = LSF.seen(output, "", 0, [])
    assert seen["1"] == seen["9"] == Seen(RUNS)
    assert seen["2[1]"] == Seen(WAITS, "New job is waiting for scheduling;")
    assert seen["2[2]"] == Seen(WAITS, "held")
    how = [seen[key].reason for key in "345678"]
    assert how == [DONE, FAILED, CANCELLED, TIME, MEMORY, KILLED]
    assert seen["5"].words == "was cancelled by its owner"


def test_lsf_may_know_none_of_the_jobs_any_more() -> None:
    assert LSF.seen("", "Job <17> is not found\n", 255, []) == {}
    with pytest.raises(ValueError, match="LSF is down"):
        LSF.seen("", "LSF is down. Please wait ...\n", 255, [])


def test_lsf_counts_whole_minutes() -> None:
    assert "-W 0:02" in LSF.directives(job(walltime=61))


# -- HTCondor ----------------------------------------------------------------------------


def test_htcondor_says_what_jobs_do() -> None:
    jobs = [
        {"ProcId": 0, "JobStatus": 1},
        {"ProcId": 1, "JobStatus": 2},
        {"ProcId": 2, "JobStatus": 5, "HoldReason": "Error from slot1: no such file"},
        {"ProcId": 3, "JobStatus": 3, "RemoveReason": "via condor_rm (by user ada)"},
        {
            "ProcId": 4,
            "JobStatus": 3,
            "RemoveReason": "The job attribute PeriodicRemove expression evaluated to TRUE",
        },
        {"ProcId": 5, "JobStatus": 4, "ExitBySignal": False, "ExitCode": 0},
        {"ProcId": 6, "JobStatus": 4, "ExitBySignal": False, "ExitCode": 3},
        {"ProcId": 7, "JobStatus": 4, "ExitBySignal": True, "ExitSignal": 9},
        {"ProcId": 8, "JobStatus": 7},
        {"ProcId": 9, "JobStatus": 4},
    ]
    output = json.dumps([{"ClusterId": 17, **each} for each in jobs])
    seen = CONDOR.seen(output, "", 0, [])
    assert seen["17.0"] == Seen(WAITS)
    assert seen["17.1"] == seen["17.8"] == Seen(RUNS)
    assert seen["17.2"] == Seen(WAITS, "it is held: Error from slot1: no such file")
    assert seen["17.3"].words == "was cancelled by ada"
    assert [seen[f"17.{i}"].reason for i in (4, 5, 6, 7, 9)] == [TIME, DONE, FAILED, KILLED, GONE]
    assert seen["17.7"].words == "was killed by signal 9 (SIGKILL)"


def test_htcondor_prints_nothing_where_none_is_in_the_queue() -> None:
    assert CONDOR.seen("\n", "", 0, []) == {}
    with pytest.raises(ValueError, match="Failed to fetch ads"):
        CONDOR.seen("", "-- Failed to fetch ads from: <127.0.0.1:9618>\n", 1, [])
    with pytest.raises(ValueError, match="no list"):
        CONDOR.seen("{}", "", 0, [])
    assert CONDOR.inquest("not json") == {}


# -- cancelling --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "command"),
    [(SLURM, "scancel"), (PBS, "qdel"), (SGE, "qdel"), (LSF, "bkill"), (CONDOR, "condor_rm")],
)
def test_cancelling(system: System, command: str) -> None:
    assert system.cancel_command(["1", "2"]) == [command, "1", "2"]
