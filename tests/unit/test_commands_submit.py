"""persia-hpc submit: the scripts in slurm/ are what it writes; what it refuses; what it hands to sbatch."""

from __future__ import annotations

import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from persia_hpc.cli import main
from persia_hpc.errors import UserError
from persia_hpc.launch.slurm_options import seeds_of, time_seconds

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = '[data]\ntrain = "a.h5"\n[model]\nclass = "dlrm"\n'
PER_NODE = "[ranks.per_node]\nparameter_servers = 1\nembedding_workers = 1\ntrainers = 4\n" + DATA
IN_ALL = "[ranks]\nparameter_servers = 4\nembedding_workers = 4\ntrainers = 8\n" + DATA

# What slurm/README.md says the scripts there are made with.
GOLDEN = {
    "train.sbatch": (
        PER_NODE,
        ["--nodes", "2", "--gpus-per-node", "4", "--time", "04:00:00", "--env-file", "slurm/env.sh"],
    ),
    "train_hetjob.sbatch": (
        IN_ALL,
        [
            *["--cpu-nodes", "2", "--cpu-partition", "cpu", "--nodes", "2", "--partition", "gpu"],
            *["--gpus-per-node", "4", "--time", "04:00:00", "--env-file", "slurm/env.sh"],
        ],
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a configuration and the site's file."""
    (tmp_path / "train.toml").write_text(PER_NODE)
    (tmp_path / "slurm").mkdir()
    shutil.copy(REPOSITORY / "slurm" / "env.sh", tmp_path / "slurm")
    (tmp_path / "bin").mkdir()
    monkeypatch.chdir(tmp_path)
    # The environment's persia-hpc is found by PATH, as in an activated one.
    monkeypatch.setattr("persia_hpc.commands.submit._missing_path", lambda: None)
    return tmp_path


def fake_sbatch(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    program = folder / "bin" / "sbatch"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")


@pytest.mark.parametrize("name", GOLDEN)
def test_scripts_are_what_submit_writes(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, options = GOLDEN[name]
    (folder / "train.toml").write_text(config)
    assert main(["submit", "train.toml", *options, "--dry-run"]) == 0
    assert capsys.readouterr().out == (REPOSITORY / "slurm" / name).read_text()
    command = f"persia-hpc submit train.toml {' '.join(options)} --dry-run"
    readme = " ".join((REPOSITORY / "slurm" / "README.md").read_text().replace("\\\n", " ").split())
    assert command in readme
    assert sorted(p.name for p in folder.iterdir()) == ["bin", "slurm", "train.toml"]


def test_script_has_what_was_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--job-name", "ctr", "--account", "p1", "--partition", "gpu", "--cpus-per-task", "8"]
    options += ["--mpi", "pmix", "--launcher", "mpiexec", "--signal-seconds", "120", "--run-dir", "runs/a"]
    options += ["--extra=--constraint=ib", "--extra=--exclusive", "--set", "train.epochs=2"]
    options += ["--set", "data.train=it's here.h5", "--set", "train.threads=3", "--max-restarts", "3"]
    assert main(["submit", "train.toml", *options, "--dry-run"]) == 0
    script = capsys.readouterr().out
    lines = script.splitlines()
    header = ["job-name=ctr", "account=p1", "partition=gpu", "cpus-per-task=8", "signal=B:USR1@120"]
    for line in [*header, "output=runs/a/%x-%j.out", "constraint=ib", "exclusive", "ntasks-per-node=6"]:
        assert f"#SBATCH --{line}" in lines
    assert "export SLURM_MPI_TYPE=pmix" in lines
    assert "max_restarts=3" in lines
    assert "--launcher mpiexec --resume" in script
    assert 'train.threads="$SLURM' not in script  # the configuration says it
    assert "gpus" not in script
    # The shell gives back the very words.
    command = next(line for line in lines if line.startswith("persia-hpc train")).removesuffix(" &")
    shell = f"config=c run_dir=d; printf '%s\\n' {command}"
    words = subprocess.run(
        ["bash", "-c", shell], text=True, capture_output=True, check=True
    ).stdout.splitlines()
    assert words[2:5] == ["c", "--run-dir", "d"]
    assert [b for a, b in pairwise(words) if a == "--set"] == [
        "train.epochs=2",
        "data.train=it's here.h5",
        "train.threads=3",
    ]


def test_uneven_ranks_are_counted_in_all(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "train.toml").write_text(IN_ALL.replace("trainers = 8", "trainers = 7"))
    assert main(["submit", "train.toml", "--nodes", "2", "--dry-run"]) == 0
    assert "#SBATCH --ntasks=15\n" in capsys.readouterr().out


BAD = [
    (["--nodes", "0"], "--nodes 0: expected a whole number, at least 1"),
    (["--time", "soon"], "--time 'soon': expected minutes"),
    (["--time", "1", "--signal-seconds", "60"], "less than the time limit (1 is 60 s)"),
    (["--partition", "a b"], "--partition 'a b': expected letters"),
    (["--run-dir", "runs/%j"], "--run-dir 'runs/%j': expected letters"),
    (["--extra", "exclusive"], "--extra 'exclusive': expected one option of sbatch"),
    (["--extra=--comment=a\nrm x"], "expected one option of sbatch"),
    (["--gpus-per-node", "2"], "--gpus-per-node 2: a node has up to 4 trainers"),
    (["--cpu-nodes", "1"], "--cpu-nodes and [ranks.per_node] exclude each other"),
    (["--env-file", "none.sh"], "--env-file none.sh: there is no such file"),
    (["--set", "train.epochs=0"], "train.epochs"),
    (["--seeds", "5-1"], "--seeds '5-1': expected whole numbers"),
    (["--seeds", "1-3", "--set", "seed=4"], "--seeds and --set seed=... exclude each other"),
    (["--seeds", "1-3", "--cpu-nodes", "1"], "--seeds and --cpu-nodes exclude each other"),
    (["--preprocess", "tabel x.toml --out a"], "invalid choice: 'tabel'"),
    (["--preprocess", "table 'x.toml --out a"], "No closing quotation"),
    (["--preprocess", "table --help"], "expected no --help"),
    (["--preprocess-parts", "2"], "--preprocess-parts without --preprocess"),
    (["--evaluate=--splitt=valid"], "unrecognized arguments: --splitt=valid"),
]


@pytest.mark.parametrize(("options", "part"), BAD, ids=lambda each: str(each)[:30])
def test_bad_options_are_refused(
    options: list[str], part: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "train.toml", *options, "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert part in error
    assert error.count("\n") == 1


def test_more_nodes_than_ranks_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "train.toml").write_text(IN_ALL)
    for options in (["--nodes", "17"], ["--cpu-nodes", "9"], ["--cpu-nodes", "1", "--nodes", "9"]):
        assert main(["submit", "train.toml", *options, "--dry-run"]) == 2
        assert "ranks for them" in capsys.readouterr().err
    assert main(["submit", "train.toml", "--cpu-nodes", "1", "--launcher", "mpiexec", "--dry-run"]) == 2
    assert "--cpu-nodes needs --launcher srun" in capsys.readouterr().err


def test_without_slurm(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(folder / "bin"))
    assert main(["submit", "train.toml"]) == 2
    assert "there is no sbatch on PATH" in capsys.readouterr().err
    assert not (folder / "runs").exists()


def test_submission_says_where_everything_is(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_sbatch(folder, monkeypatch, 'echo "$@" >given; env >>given; cat >script; echo "4711;cluster"')
    monkeypatch.setenv("SLURM_NTASKS", "99")  # of a job in which this was typed
    assert main(["submit", "train.toml"]) == 0
    out = capsys.readouterr().out
    for part in ("submitted job 4711\n", "persia-hpc-4711.out", "persia-hpc status runs/job-4711"):
        assert part in out
    assert (folder / "runs/job-4711/slurm_job").read_text() == "4711\n"
    assert (folder / "runs/job-4711/job.sbatch").read_text() == (folder / "script").read_text()
    given = (folder / "given").read_text()
    assert given.startswith("--parsable\n")
    assert "SLURM_NTASKS" not in given
    assert main(["submit", "train.toml", "--run-dir", "results"]) == 0
    assert "results/persia-hpc-4711.out" in capsys.readouterr().out


def test_refusal_by_sbatch_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_sbatch(folder, monkeypatch, 'echo "sbatch: error: invalid partition specified: x" >&2; exit 1')
    assert main(["submit", "train.toml", "--partition", "x"]) == 2
    error = capsys.readouterr().err
    assert error == (
        "persia-hpc: error: sbatch refused the job persia-hpc: error: invalid partition specified: x\n"
    )


def test_names_mail_and_licences_are_options_of_sbatch(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ["--mail-type=END,FAIL", "--mail-user=a@b.org", "--licenses=lustre:1", "--exclude=n[1-3,7]"]
    assert main(["submit", "train.toml", *(f"--extra={each}" for each in wanted), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("#SBATCH")][-4:] == [f"#SBATCH {w}" for w in wanted]


def test_each_part_of_a_heterogeneous_job_has_the_other_options_of_sbatch(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """GPUs are the trainers', who come last; what counts for the job as a whole is asked for once."""
    (folder / "train.toml").write_text(IN_ALL)
    both = ["--qos=short", "--exclude=n17", "-C ib", "--gres=nvme:1", "--bell"]
    gpus = [
        "--gres=gpu:a100:4",
        "--gpus-per-task=1",
        "--mem-per-gpu=20G",
        "--cpus-per-gpu 4",
        "--ntasks-per-gpu=1",
        "-G 4",
        "--gpu-bind=closest",
        "--tres-per-task=gres:gpu:1",
    ]
    once = [
        "--mail-type=END",
        "--mail-user=a@b.org",
        "-L lustre",
        "--licenses=x:2",
        "--bb=capacity=1",
        "--bbf=f",
    ]
    extra = [f"--extra={each}" for each in [*both, *gpus, *once]]
    words = ["submit", "train.toml", "--cpu-nodes", "2", "--nodes", "2", *extra, "--dry-run"]
    assert main([*words, "--preprocess", "synthetic --rows 9 --out d"]) == 0
    data, training = capsys.readouterr().out.split("#!/bin/bash")[1:]
    parts = [data, *training.split("#SBATCH hetjob\n")]
    for part, expected in zip(parts, [both + once, both + once, both + gpus], strict=True):
        header = [line.removeprefix("#SBATCH ") for line in part.splitlines() if line.startswith("#SBATCH")]
        assert header[-len(expected) :] == expected
        assert header[-len(expected) - 1].startswith("--cpus-per-task")


def test_seeds_are_an_array_with_a_run_for_each(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "train.toml", "--seeds", "1-5%2", "--run-dir", "runs/a", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "#SBATCH --array=1-5%2" in lines
    assert "#SBATCH --output=runs/a/%x-%A-%a.out" in lines
    setup = next(line for line in lines if line.startswith("run_dir="))
    command = next(line for line in lines if line.startswith("persia-hpc train")).removesuffix(" &")
    shell = f"SLURM_ARRAY_TASK_ID=4 SLURM_CPUS_PER_TASK=2 config=c; {setup}; printf '%s\\n' {command}"
    words = subprocess.run(["bash", "-c", shell], text=True, capture_output=True, check=True).stdout.split()
    assert words[4] == "runs/a/seed-4"
    assert "seed=4" in words
    assert main(["submit", "train.toml", "--seeds", "3,5", "--dry-run"]) == 0
    assert "run_dir=runs/job-$SLURM_ARRAY_JOB_ID/seed-$SLURM_ARRAY_TASK_ID\n" in capsys.readouterr().out


def test_a_task_of_an_array_requeues_itself_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The SLURM_JOB_ID of one of them is the id of the array: all would be requeued."""
    said = {}
    for seeds in ([], ["--seeds", "1-3"]):
        assert main(["submit", "train.toml", *seeds, "--dry-run"]) == 0
        script = capsys.readouterr().out
        (line,) = (line for line in script.splitlines() if "scontrol requeue" in line)
        command = line.partition("elif ")[2].replace("scontrol", "echo").removesuffix("; then")
        shell = f"SLURM_JOB_ID=47 SLURM_ARRAY_JOB_ID=47 SLURM_ARRAY_TASK_ID=3; {command}"
        done = subprocess.run(["bash", "-uc", shell], text=True, capture_output=True, check=True)
        said[bool(seeds)] = done.stdout
    assert said == {False: "requeue 47\n", True: "requeue 47_3\n"}


@pytest.mark.parametrize(
    ("text", "seeds"), [("1-3", [1, 2, 3]), ("7", [7]), ("0,4,2-3%1", [0, 4, 2, 3]), ("5-5", [5])]
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert seeds_of(text) == seeds


@pytest.mark.parametrize(
    "text", ["", "a", "3-1", "1,1", "1-3,2", "1-", "-1", "1-3%0", "1-3%", "1:2", "0-1000000"]
)
def test_bad_seeds(text: str) -> None:
    with pytest.raises(UserError, match=r"--seeds .* expected"):
        seeds_of(text)


CHAIN = [
    *["--preprocess", "synthetic --rows 1000 --shards 4 --out 'my data'", "--preprocess-parts", "2"],
    "--evaluate=--split valid",
]


def test_a_chain_is_three_jobs_each_behind_the_one_before(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = "n=$(ls given.* 2>/dev/null | wc -l)"
    body = f'{count}; echo "$@" >given.$n; cat >script.$n; echo "$((100 + n))"'
    fake_sbatch(folder, monkeypatch, body)
    assert main(["submit", "train.toml", *CHAIN, "--job-name", "ctr"]) == 0
    out = capsys.readouterr().out
    for part in (
        "job 100 for the data; log ctr-preprocess-100-N.out",
        "submitted job 101\n",
        "job 102 for the",
    ):
        assert part in out
    given = [(folder / f"given.{i}").read_text().split() for i in range(3)]
    wait = "--kill-on-invalid-dep=yes"
    assert given == [
        ["--parsable"],
        ["--parsable", "--dependency=afterok:100", wait],
        ["--parsable", "--dependency=afterok:101", wait],
    ]
    first, middle, last = ((folder / f"script.{i}").read_text() for i in range(3))
    assert "#SBATCH --array=0-1\n" in first
    assert "--out 'my data' --part \"$SLURM_ARRAY_TASK_ID/2\"\n" in first
    assert "--gpus" not in first
    assert middle == (folder / "runs/job-101/job.sbatch").read_text()
    assert 'persia-hpc evaluate "$run_dir" --split valid | tee' in last
    assert "run_dir=runs/job-101\n" in last
    for script in (first, last):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_of_seeds_each_is_evaluated_behind_its_own_run(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_sbatch(folder, monkeypatch, 'echo "$@" >>given; cat >script; echo 4711')
    assert main(["submit", "train.toml", "--seeds", "1-3", "--evaluate"]) == 0
    assert "summary   persia-hpc report runs/job-4711\n" in capsys.readouterr().out
    assert "--dependency=aftercorr:4711" in (folder / "given").read_text()
    script = (folder / "script").read_text()
    assert "#SBATCH --array=1-3\n" in script
    assert "run_dir=runs/job-4711/seed-$SLURM_ARRAY_TASK_ID\n" in script
    assert 'persia-hpc evaluate "$run_dir" | tee' in script


@pytest.mark.parametrize(
    ("taken", "said"),
    [
        (0, "refused the job persia-hpc-preprocess: error: no\n"),
        (1, "refused the job persia-hpc: error: no; of its chain Slurm has already 100 (scancel 100 takes"),
        (2, "persia-hpc-evaluate: error: no; of its chain Slurm has already 100 101 (scancel 100 101 takes"),
    ],
)
def test_a_chain_that_is_refused_midway_says_what_is_submitted(
    taken: int, said: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    body = f"""n=$(ls given.* 2>/dev/null | wc -l); touch given.$n; cat >script
[ $n -lt {taken} ] || {{ echo "sbatch: error: no" >&2; exit 1; }}
echo $((100 + n))"""
    fake_sbatch(folder, monkeypatch, body)
    assert main(["submit", "train.toml", *CHAIN]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("seeds", "likely"), [("5-1001", True), ("2000%1", True), ("1-1000%2000", False)])
def test_an_index_beyond_slurms_arrays_is_the_likely_cause_of_a_refusal(
    seeds: str,
    likely: bool,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_sbatch(folder, monkeypatch, 'echo "sbatch: error: Invalid job array specification" >&2; exit 1')
    assert main(["submit", "train.toml", "--seeds", seeds]) == 2
    assert ("MaxArraySize - 1, 1000 by default" in capsys.readouterr().err) == likely


def test_every_job_of_a_chain_has_the_other_options_of_sbatch(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "train.toml", *CHAIN, "--extra=--qos=short", "--dry-run"]) == 0
    assert capsys.readouterr().out.count("\n#SBATCH --qos=short\n") == 3


def test_a_dry_run_shows_all_scripts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "train.toml", *CHAIN, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.count("#!/bin/bash") == 3
    assert (
        out.index("persia-hpc preprocess")
        < out.index("persia-hpc train ")
        < out.index("persia-hpc evaluate ")
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("01:00:00", 3600),
        ("2-3", 183_600),
        ("1-0:30", 88_200),
        ("1-0:0:1", 86_401),
    ],
)
def test_time_limits(text: str, seconds: int) -> None:
    assert time_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "1h", "1:2:3:4", "-5", "1.5"])
def test_bad_time_limits(text: str) -> None:
    with pytest.raises(UserError, match="--time"):
        time_seconds(text)
