# SPDX-License-Identifier: Apache-2.0
"""A SLURM of one node for tests: munged, slurmctld and slurmd with files and ports of their own, so
that one which is set up on this machine is neither used nor touched. It needs root and

    apt-get install -y slurm-wlm munge

Two partitions: ``low``, the default, and ``high``, whose jobs take the node from those in ``low``,
which are queued again. There is no accounting, and no cgroups are needed.

    python -m tests.cluster.one_node FOLDER      run it until Ctrl-C, and say how to use it
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "sinfo")
CPUS = 2
SECONDS = 60.0  # until the node takes jobs

CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/ctl
SlurmdSpoolDir={folder}/d
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
# As many processors as the tests are written for, whatever there are.
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=20
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=high Nodes={host} MaxTime=INFINITE State=UP PriorityTier=10
"""


def lacking() -> str | None:
    """What this machine lacks, in words; None where SLURM can be started."""
    for name in PROGRAMS:
        if shutil.which(name) is None:
            return f"there is no {name}: apt-get install -y slurm-wlm munge"
    if os.geteuid() != 0:
        return "SLURM is started by root alone"
    return None


@contextmanager
def running(folder: Path) -> Iterator[Path]:
    """The three programs, with everything below ``folder``; its slurm.conf, which the environment
    variable SLURM_CONF has to name."""
    folder.chmod(0o755)
    (folder / "ctl").mkdir(exist_ok=True)
    (folder / "d").mkdir(exist_ok=True)
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(1024))
    conf = folder / "slurm.conf"
    ports = dict(zip(("ctld_port", "slurmd_port"), _free_ports(2), strict=True))
    host = socket.gethostname().partition(".")[0]
    conf.write_text(CONF.format(folder=folder, host=host, cpus=CPUS, **ports))
    commands = (
        ["munged", "--foreground", "--force", f"--key-file={key}",
         f"--socket={folder}/munge.socket", f"--pid-file={folder}/munged.pid",
         f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed"],
        ["slurmctld", "-D", "-c", "-f", str(conf)],
        ["slurmd", "-D", "-c", "-f", str(conf)],
    )  # fmt: skip
    with ExitStack() as stack:
        for command in commands:
            stack.enter_context(_program(command, folder))
            time.sleep(1.0)
        yield conf


@contextmanager
def _program(command: list[str], folder: Path) -> Iterator[None]:
    with (folder / f"{command[0]}.out").open("w") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        yield
    finally:
        child.terminate()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_until_idle() -> None:
    """Until the node takes jobs. RuntimeError with SLURM's words where it does not."""
    until, said = time.monotonic() + SECONDS, ""
    while time.monotonic() < until:
        done = subprocess.run(
            ["sinfo", "-h", "-p", "low", "-o", "%T"], capture_output=True, text=True, check=False
        )
        said = done.stdout.strip() or done.stderr.strip()
        if said == "idle":
            return
        time.sleep(0.5)
    raise RuntimeError(f"the node of the tests takes no jobs: {said}")


def main() -> None:
    if told := lacking():
        sys.exit(told)
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with running(folder) as conf:
        os.environ["SLURM_CONF"] = str(conf)
        wait_until_idle()
        print(f"export SLURM_CONF={conf}    # Ctrl-C ends it", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
