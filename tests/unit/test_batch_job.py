"""Jobs as data: times, sizes, scripts, templates."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipython1.kernel.error import LaunchError
from ipython1.kernel.files import ClusterFiles
from ipython1.launch.batch import LSF, PBS, SGE, HTCondor, Slurm
from ipython1.launch.batch.job import MOST_MARGIN, Job, mebibytes_of, seconds_of
from ipython1.launch.launcher import make_launcher

SYSTEMS = {"slurm": Slurm, "pbs": PBS, "sge": SGE, "lsf": LSF, "htcondor": HTCondor}


@pytest.fixture
def files() -> ClusterFiles:
    return ClusterFiles("mine", Path("/shared/home"))


def job(**facts: object) -> Job:
    common = {
        "name": "j",
        "engines": 1,
        "command": ["x"],
        "folder": Path("/r"),
        "stem": "s",
        "log": Path("/l"),
    }
    return Job(**{**common, **facts})  # type: ignore[arg-type]


# -- times and sizes ---------------------------------------------------------------------


@given(st.integers(1, 10**7))
def test_a_walltime_is_read_as_it_is_written(seconds: int) -> None:
    assert seconds_of(job(walltime=seconds).clock) == seconds


@given(st.integers(1, 10**6))
def test_engines_begin_to_leave_in_good_time_and_are_gone_before_the_end(seconds: int) -> None:
    asked = job(walltime=seconds)
    assert 0 < asked.leave_after < seconds
    assert seconds - asked.leave_after <= MOST_MARGIN
    within = float(asked.shell_command().split()[-1])
    assert asked.leave_after + within <= seconds


@pytest.mark.parametrize(
    ("text", "seconds"), [("1:00:00", 3600), ("0:00:30", 30), ("2-01:00:00", 176400), (" 36:00:00", 129600)]
)
def test_walltimes(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "1:30", "1h", "0:00:00", "1:60:00", "-1:00:00"])
def test_what_is_no_walltime(text: str) -> None:
    with pytest.raises(ValueError, match=r"walltime"):
        seconds_of(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4G", 4096), ("500M", 500), ("1.5g", 1536), ("2 GiB", 2048), ("1T", 2**20), ("10K", 1)],
)
def test_sizes_of_memory(text: str, size: int) -> None:
    assert mebibytes_of(text) == size


@pytest.mark.parametrize("text", ["", "4", "G", "0G", "-1G", "4X", "4G4"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"as in 4G"):
        mebibytes_of(text)


# -- how many jobs -----------------------------------------------------------------------


def scripts(plan: str) -> list[str]:
    return [line for line in plan.splitlines() if line.startswith("# ")]


def test_engines_are_shared_out_to_jobs(files: ClusterFiles) -> None:
    plan = Slurm(files, per_job=4).plan(10)
    assert scripts(plan) == [
        "# sbatch --parsable < /shared/home/mine/run/ipengine-4.sh  # 2 times",
        "# sbatch --parsable < /shared/home/mine/run/ipengine-2.sh",
    ]
    assert scripts(Slurm(files).plan(3)) == [
        "# sbatch --parsable < /shared/home/mine/run/ipengine-1.sh  # 3 times"
    ]


def test_an_array_is_one_job_and_the_rest(files: ClusterFiles) -> None:
    plan = Slurm(files, per_job=4, array=True).plan(10)
    assert scripts(plan) == [
        "# sbatch --parsable < /shared/home/mine/run/ipengine-4x2.sh",
        "# sbatch --parsable < /shared/home/mine/run/ipengine-2.sh",
    ]
    assert "#SBATCH --array=0-1\n" in plan
    assert "--array" not in Slurm(files, per_job=4, array=True).plan(4)


def test_one_job_with_a_nanny_on_each_node(files: ClusterFiles) -> None:
    plan = Slurm(files, per_job=4, srun=True, cpus=2).plan(12)
    assert "#SBATCH --nodes=3\n" in plan
    assert "#SBATCH --cpus-per-task=8\n" in plan
    assert plan.count("srun --ntasks=3 --ntasks-per-node=1") == 1
    with pytest.raises(LaunchError, match="10 engines are not 4 on each"):
        Slurm(files, per_job=4, srun=True).plan(10)
    assert "#SBATCH --nodes=1\n" in Slurm(files, srun=True).plan(5)


# -- the scripts -------------------------------------------------------------------------


OPTIONS: list[dict[str, object]] = [
    {},
    {"array": True},
    {"srun": True},
    {"walltime": "1:00:00", "memory": "4G"},
]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (name, options)
        for name in SYSTEMS
        for options in OPTIONS
        if not options.keys() & SYSTEMS[name].system.refuses.keys()
    ],
)
def test_scripts_are_bash_and_have_no_secret(
    name: str, options: dict[str, object], files: ClusterFiles, tmp_path: Path
) -> None:
    launcher = make_launcher(name, files, {"per_job": 2, "env": ("A=it's me",), **options})
    for each in launcher._jobs_for(4):  # type: ignore[attr-defined]
        for path, text in SYSTEMS[name].system.texts(each).items():
            assert "pb://" not in text
            assert path.parent == files.run
            if path.suffix == ".sh":
                (tmp_path / "script").write_text(text)
                subprocess.run(["bash", "-n", tmp_path / "script"], check=True)
                assert "export A='it'\"'\"'s me'" in text


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_a_script_does(name: str, tmp_path: Path) -> None:
    """Run, it sets the environment, runs the prologue, and becomes the engines' command."""
    files = ClusterFiles("mine", tmp_path / "home")
    files.create()
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$A$PROLOGUE $(pwd)" > "$OUT"; printf "%s\\n" "$@" >> "$OUT"\n')
    python.chmod(0o700)
    launcher = SYSTEMS[name](
        files,
        per_job=3,
        python=str(python),
        cwd=str(tmp_path),
        env=("A=1 2", f"OUT={tmp_path}/out"),
        prologue=("PROLOGUE=' was here'", "export PROLOGUE"),
        walltime="0:10:00",
    )
    [each] = launcher._jobs_for(3)
    path, text = next(iter(launcher.system.texts(each).items()))
    path.write_text(text)
    subprocess.run(
        ["bash", path], check=True, env={"PATH": "/usr/bin:/bin", "PBS_JOBID": "1", "LSB_JOBID": "1"}
    )
    first, *rest = (tmp_path / "out").read_text().splitlines()
    assert first == f"1 2 was here {tmp_path}"
    options = " ".join(rest[2:])
    assert options == (
        f"-n 3 --cluster mine --furl-file {files.furl('engine')} --log-dir {files.log} --leave-when-empty "
        "--stuck leave --stuck-after 5 --leave-after 570 --leave-within 20"
    )


def test_directives_of_the_user_come_last(files: ClusterFiles) -> None:
    lines = Slurm(files, directive=("-G gpu:1", "--nice")).plan(1).splitlines()
    head = [line for line in lines if line.startswith("#SBATCH")]
    assert head[-2:] == ["#SBATCH -G gpu:1", "#SBATCH --nice"]


def test_another_command_may_submit(files: ClusterFiles) -> None:
    assert (
        Slurm(files, submit="ssh login sbatch --parsable")
        .plan(1)
        .startswith("# ssh login sbatch --parsable <")
    )


# -- templates ---------------------------------------------------------------------------


def test_a_template_is_the_whole_script(files: ClusterFiles, tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text("#!/bin/sh\n#SBATCH -p @{queue} -n $N ${arr[@]}\nroot@host\n@{environment}\n@{command}\n")
    plan = Slurm(files, template=str(path), queue="gpu", env=("A=1",), per_job=2).plan(2)
    assert "#SBATCH -p gpu -n $N ${arr[@]}\nroot@host\nexport IPYTHON1_DIR=/shared/home\n" in plan
    assert "\nexport A=1\n" in plan
    assert "--job-name" not in plan
    assert "-n 2 --cluster mine" in plan.splitlines()[-1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "@{command} @{que} @{Queue}",
            r"The template has @\{Queue\}, @\{que\}\. Known are: account, command, ",
        ),
        ("exec ipengine", r"The template has no @\{command\}"),
    ],
)
def test_a_template_that_cannot_be(text: str, words: str, files: ClusterFiles, tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        Slurm(files, template=str(path))


def test_a_template_that_is_not_there(files: ClusterFiles, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        Slurm(files, template=str(tmp_path / "none"))


def test_a_template_of_htcondor_is_the_description(files: ClusterFiles, tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text("executable = @{script}\n+Rank = 1\nqueue @{count}\n")
    plan = HTCondor(files, template=str(path), array=True).plan(3)
    assert plan.endswith("executable = /shared/home/mine/run/ipengine-1x3.sh\n+Rank = 1\nqueue 3")
    path.write_text("queue\n")
    with pytest.raises(ValueError, match=r"no @\{script\}"):
        HTCondor(files, template=str(path))


# -- what is refused ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("sge", {"srun": True}, "--srun is of no use with Grid Engine"),
        ("htcondor", {"srun": True}, "--srun is of no use with HTCondor"),
        ("htcondor", {"queue": "q"}, "--queue is of no use with HTCondor: it has none"),
        ("slurm", {"srun": True, "array": True}, "either --array or --srun"),
        ("slurm", {"per_job": 0}, "--per-job is 1 or more, not 0"),
        ("slurm", {"cpus": -1}, "--cpus is 1 or more"),
        ("slurm", {"queue": "a\n#SBATCH -p b"}, "has a line end"),
        ("slurm", {"directive": ("a\nrm -r x",)}, "has a line end"),
        ("slurm", {"job_name": "a b"}, "is no name for a job"),
        ("slurm", {"env": ("A",)}, "'A' sets no variable. Write NAME=VALUE"),
        ("slurm", {"walltime": "soon"}, "no walltime"),
        ("slurm", {"memory": "much"}, "no size"),
        ("slurm", {"hosts": "a"}, "--hosts is of no use with --engines slurm"),
    ],
)
def test_what_is_refused(name: str, options: dict[str, object], words: str, files: ClusterFiles) -> None:
    with pytest.raises(ValueError, match=words):
        make_launcher(name, files, options)


def test_folders_that_cannot_stand_in_a_script_are_refused() -> None:
    with pytest.raises(ValueError, match="Set IPYTHON1_DIR"):
        Slurm(ClusterFiles("mine", Path("/home/of me")))
