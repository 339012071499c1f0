"""A real SLURM cluster of several nodes on this machine, for tests.

Each node has processes, a hostname, shared memory and a network interface of its own, so that it
can lose its power (`kill_node`), its SLURM daemon (`kill_slurmd`) or its cable (`cut`). All of it
lives in namespaces: nothing is visible outside but its processes, two clusters do not meet, and
the kernel ends it all when the process that started it is gone, however it went.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import processes
from cluster_files import munge_options, write_files

HERE = Path(__file__).parent
DAEMONS = ("munged", "slurmctld", "slurmd")
COMMANDS = (*DAEMONS, "sbatch", "scontrol", "scancel", "unshare", "nsenter", "ip")
# What a unix socket's path may have, less the socket's own name.
_LONGEST_FOLDER = 90
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")


def missing() -> str | None:
    """Why this machine cannot have a cluster; None where it can."""
    if os.geteuid() != 0:
        return "a SLURM cluster of its own needs root"
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    absent = [name for name in COMMANDS if shutil.which(name, path=path) is None]
    if absent:
        return (
            f"no {', '.join(absent)}: apt install slurmctld slurmd slurm-client munge iproute2 "
            f"util-linux"
        )
    probe = "ip link add v0 type veth peer name v1 && ip link add br0 type bridge"
    made = subprocess.run(
        ["unshare", "--mount", "--uts", "--net", "--pid", "--fork", "sh", "-c", probe],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no namespaces: {made.stderr.strip()}" if made.returncode else None


class SlurmCluster:
    """A cluster of nodes n1, n2, ...; start it by `with`.

    Args:
        num_nodes: how many.
        cpus: of each node, whatever this machine has.
        gpus: of each node; none of them is real.
        node_timeout_s: after how many seconds of silence a node is given up.
        kill_wait_s: between SLURM's SIGTERM and its SIGKILL.
    """

    def __init__(
        self,
        num_nodes: int = 3,
        cpus: int = 8,
        gpus: int = 2,
        node_timeout_s: int = 10,
        kill_wait_s: int = 5,
    ) -> None:
        self.nodes = [f"n{number}" for number in range(1, num_nodes + 1)]
        self.cpus = cpus
        self.gpus = gpus
        self.node_timeout_s = node_timeout_s
        self.kill_wait_s = kill_wait_s
        self.folder = Path()
        self.conf = Path()
        self._room: subprocess.Popen[str] | None = None
        self._children: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> SlurmCluster:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything and wait until all nodes are idle."""
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.conf = self.folder / "slurm.conf"
        try:
            assert len(str(self.folder)) < _LONGEST_FOLDER, "TMPDIR is too long for sockets"
            self._write_files()
            self._open_room()
            self._daemon("munged", "--foreground", "--force", *munge_options(self.folder))
            self.wait_for((self.folder / "munge.sock").exists, "munged")
            self._daemon("slurmctld", "-D", "-f", str(self.conf))
            self.wait_for(lambda: "is UP" in self.ask("scontrol", "ping"), "slurmctld")
            for node in self.nodes:
                self.start_node(node)
            for node in self.nodes:
                self.wait_for_node(node)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process of the cluster and remove its files."""
        room, self._room = self._room, None
        if room is not None:
            assert room.stdin is not None
            room.stdin.close()
            room.wait(30)
            assert room.stdout is not None
            room.stdout.close()
        for child in self._children:
            child.wait(30)
        self._children = []
        shutil.rmtree(self.folder, ignore_errors=True)

    # Jobs.

    @property
    def environment(self) -> dict[str, str]:
        """What SLURM's commands need to find this cluster."""
        path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
        return {**os.environ, "SLURM_CONF": str(self.conf), "PATH": path}

    def run(
        self,
        *command: str,
        cwd: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the head node; its words and its code are the caller's."""
        cwd = Path.cwd() if cwd is None else cwd
        return subprocess.run(
            [*self._enter("head"), f"--wd={cwd}", "--", *command],
            capture_output=True,
            text=True,
            env={**self.environment, **(variables or {})},
            check=False,
        )

    def ask(self, *command: str) -> str:
        """Run a command on the head node and return what it says, errors too."""
        done = self.run(*command)
        return done.stdout + done.stderr

    def submit(
        self,
        *words: str | Path,
        cwd: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> str:
        """Send a job by sbatch and return its id."""
        words = ("sbatch", "--parsable", *words)
        done = self.run(*map(str, words), cwd=cwd, variables=variables)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def facts(self, job: str) -> dict[str, str]:
        """What SLURM knows of a job: JobState, NodeList, Restarts, Reason, ExitCode and so on."""
        said = self.run("scontrol", "show", "job", "-o", job).stdout
        return dict(word.split("=", 1) for word in said.split() if "=" in word)

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETING or one of ENDED; empty where SLURM does not say."""
        return self.facts(job).get("JobState", "")

    def wait_for_end(self, job: str, timeout_s: float = 600.0) -> dict[str, str]:
        """Wait until a job has ended for good; return what SLURM knows of it."""
        self.wait_for(lambda: self.state(job) in ENDED, f"the end of job {job}", timeout_s)
        return self.facts(job)

    def wait_for_restart(self, job: str, count: int, timeout_s: float = 600.0) -> None:
        """Wait until a job runs after having been requeued so often."""

        def runs_again() -> bool:
            facts = self.facts(job)
            assert facts["JobState"] not in ENDED, f"{job} ended: {facts}"
            return facts["JobState"] == "RUNNING" and int(facts["Restarts"]) >= count

        self.wait_for(runs_again, f"start {count + 1} of job {job}", timeout_s)

    def wait_for(self, is_true: Callable[[], object], what: str, timeout_s: float = 120.0) -> None:
        """Wait until something is true.

        Raises:
            TimeoutError: it is not; with the last lines of slurmctld's log.
        """
        deadline = time.monotonic() + timeout_s
        while not is_true():
            if self._room is None:
                raise TimeoutError(f"no {what}: the cluster was stopped")
            if time.monotonic() > deadline:
                log = self.folder / "slurmctld.log"
                tail = log.read_text().splitlines()[-20:] if log.exists() else []
                raise TimeoutError("\n".join([f"no {what} after {timeout_s:g} s", *tail]))
            time.sleep(0.1)

    def signal(self, job: str, name: str, to: str = "steps") -> None:
        """Send a signal to a job's ranks ("steps"), or to its batch shell alone ("batch")."""
        assert to in ("steps", "batch")
        options = ["--batch"] if to == "batch" else []
        done = self.run("scancel", f"--signal={name}", *options, job)
        assert done.returncode == 0, done.stderr

    def ranks(self, job: str) -> dict[int, int]:
        """The process ids of a job's ranks, by rank; reading processes are not among them."""
        # An array's task, "1230_4", has a number of its own too.
        sought = {"SLURM_JOB_ID": self.facts(job)["JobId"], "SLURM_CONF": str(self.conf)}
        found = {
            pid: environment["SLURM_PROCID"]
            for pid in processes.with_environment(**sought)
            if "SLURM_STEP_ID" in (environment := processes.environment_of(pid))
            and "SLURM_PROCID" in environment
        }
        first = {
            pid: int(rank) for pid, rank in found.items() if processes.parent_of(pid) not in found
        }
        return {rank: pid for pid, rank in sorted(first.items())}

    # Nodes.

    def start_node(self, node: str) -> None:
        """Give a node its power, or its SLURM daemon, where it has lost one of them."""
        boots = not self._node_process(node)
        if boots:
            self._boot(node)
        # -b: SLURM is told of the boot, and takes the jobs for lost that ran before it.
        options = ["-b"] if boots else []
        command = ["slurmd", "-D", *options, "-N", node, "-f", str(self.conf)]
        self._spawn([*self._enter(node), "--", *command], f"slurmd-{node}.out")

    def wait_for_node(self, node: str, timeout_s: float = 60.0) -> None:
        """Wait until a node is in service, doing what an administrator does after a reboot."""

        def is_up() -> bool:
            state = self.ask("sinfo", "-h", "-n", node, "-N", "-p", "main", "-o", "%t").strip()
            if state.startswith(("down", "drain")):
                self.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
            return state in ("idle", "mix", "alloc")

        self.wait_for(is_up, f"node {node}", timeout_s)

    def kill_node(self, node: str) -> None:
        """Cut a node's power: every process on it is gone at once."""
        pids = self._node_process(node)
        processes.kill(pids)
        processes.wait_gone(pids)

    def kill_slurmd(self, node: str) -> None:
        """Kill a node's SLURM daemon; the jobs on it go on."""
        pids = processes.running("-N", node, "-f", str(self.conf))
        # nsenter carries the same words, and ends with it.
        processes.kill(
            [pid for pid in pids if Path(processes.arguments_of(pid)[0]).name == "slurmd"]
        )
        processes.wait_gone(pids)

    def cut(self, node: str) -> None:
        """Pull a node's network cable."""
        self._on_head("ip", "link", "set", f"to-{node}", "down")

    def heal(self, node: str) -> None:
        """Plug it in again."""
        self._on_head("ip", "link", "set", f"to-{node}", "up")

    def _write_files(self) -> None:
        write_files(
            self.folder,
            {node: self._address(node) for node in self.nodes},
            head=self._address("head"),
            cpus=self.cpus,
            gpus=self.gpus,
            node_timeout_s=self.node_timeout_s,
            kill_wait_s=self.kill_wait_s,
        )

    def _address(self, name: str) -> str:
        return f"10.77.0.{1 if name == 'head' else 10 + self.nodes.index(name)}"

    def _open_room(self) -> None:
        """Start process 1 of the cluster, on which everything else hangs."""
        namespaces = ("--mount", "--uts", "--net", "--pid", "--fork", "--kill-child=KILL")
        self._room = subprocess.Popen(
            ["unshare", *namespaces, "--mount-proc", "bash", *self._room_words()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._room.stdout is not None
        assert self._room.stdout.readline() == "ready\n", "no namespaces"

    def _room_words(self) -> list[str]:
        return [str(HERE / "room.sh"), str(self.folder / "hosts")]

    def _boot(self, node: str) -> None:
        namespaces = ("--mount", "--uts", "--net", "--pid", "--fork", "--kill-child=KILL")
        words = ["unshare", *namespaces, "--mount-proc", "bash", *self._node_words(node)]
        out = f"{node}.out"
        (self.folder / out).unlink(missing_ok=True)
        self._spawn([*self._enter("head"), "--", *words], out)
        self.wait_for(lambda: self._node_process(node), f"process 1 of {node}")
        inside = self._pid_on_head(self._node_process(node)[0])
        cable = ["ip", "link", "add", f"to-{node}", "type", "veth"]
        self._on_head(*cable, "peer", "name", "eth0", "netns", inside)
        self._on_head("ip", "link", "set", f"to-{node}", "master", "br0", "up")
        self.wait_for(lambda: "ready" in (self.folder / out).read_text(), f"the boot of {node}")

    def _node_words(self, node: str) -> list[str]:
        return [str(HERE / "node.sh"), node, self._address(node), str(self.folder)]

    def _node_process(self, node: str) -> list[int]:
        """Process 1 of a node as this machine counts it; empty where the node is down."""
        return processes.first_of("bash", *self._node_words(node))

    def _pid_on_head(self, pid: int) -> str:
        """The number that a process has among the head node's."""
        return str(processes.numbers_of(pid)[1])

    def _enter(self, name: str) -> list[str]:
        """The command that puts a command onto the head node or onto a node."""
        words = self._room_words() if name == "head" else self._node_words(name)
        (pid,) = processes.first_of("bash", *words)
        return ["nsenter", f"--target={pid}", "--mount", "--uts", "--net", "--pid"]

    def _on_head(self, *command: str) -> None:
        done = self.run(*command)
        assert done.returncode == 0, done.stderr

    def _daemon(self, *command: str) -> None:
        self._spawn([*self._enter("head"), "--", *command], f"{command[0]}.out")

    def _spawn(self, command: Sequence[str], out: str) -> None:
        with (self.folder / out).open("ab") as file:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=self.environment,
                start_new_session=True,
            )
        self._children.append(child)
