"""Machines for tests of a Ray cluster: namespaces of this machine, connected by a bridge.

Each machine has its own network, host name, processes, and temporary folders. When its first process is killed, the kernel kills all
others, as if the power failed.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil

ROOT = Path(__file__).parents[1]
PORT = 6379
Value = TypeVar("Value")
# Time for `ray start` and for trials on a loaded machine.
PATIENCE = 400.0


def missing() -> str:
    """Return why this machine cannot run the tests, "" if it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux, for network namespaces"
    if tools := [name for name in ("ip", "unshare", "nsenter", "mount") if shutil.which(name) is None]:
        return f"needs {', '.join(tools)} (apt-get install iproute2 util-linux)"
    tried = subprocess.run(["unshare", "--net", "--pid", "--mount", "--uts", "--fork", "true"], capture_output=True)
    return "" if tried.returncode == 0 else "needs the right to create namespaces (a privileged container)"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@dataclass
class Command:
    """A command that runs on a machine, and the file with its output."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def send(self, signum: int) -> None:
        """Send a signal to the command."""
        (child,) = psutil.Process(self.process.pid).children()
        child.send_signal(signum)

    def wait(self) -> int:
        """Return its exit code."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end within {PATIENCE} s:\n{self.output}") from None


@dataclass
class Machine:
    """A machine of the cluster.

    Attributes:
        name: host name.
        address: IP address.
        namespace: network namespace.
        folder: folder for its temporary files.
        environment: environment variables of its processes.
        hosts: file with the names and addresses of all machines.
        hidden: folder that looks empty on this machine.
    """

    name: str
    address: str
    namespace: str
    folder: Path
    environment: dict[str, str]
    hosts: Path
    hidden: Path | None = None
    first: subprocess.Popen[bytes] | None = None
    commands: list[Command] = field(default_factory=list)

    def start(self, command: str) -> None:
        """Start the machine, with a command that runs until its end."""
        ray_folder = self.environment["RAY_TMPDIR"]
        for name in ("tmp", "ray"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        hide = f"mount -t tmpfs tmpfs {self.hidden};" if self.hidden else ""
        # bash stays the first process, which adopts and reaps the others. A machine stays up when its command ends.
        script = (
            f"hostname {self.name}; mount --bind {self.folder}/ray {ray_folder}; mount --bind {self.hosts} /etc/hosts; {hide}"
            f"{command} & wait; sleep infinity"
        )
        with open(self.log, "ab") as log:
            self.first = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.namespace}", "unshare", "--uts", "--mount", "--pid", "--mount-proc", "--fork",
                 "--kill-child=SIGKILL", "bash", "-c", script],
                env=self.environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    @property
    def log(self) -> Path:
        """Output of the first command."""
        return self.folder / "machine.log"

    def pids(self) -> list[int]:
        """Return the ids of all processes of the machine."""
        if self.first is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            return [child.pid for child in psutil.Process(self.first.pid).children(recursive=True)]
        return []

    def run(self, *command: str, **variables: str) -> Command:
        """Start a command on this machine."""
        pid = str(self.pids()[0])
        path = self.folder / f"command_{len(self.commands)}.log"
        with open(path, "wb") as log:
            process = subprocess.Popen(
                ["nsenter", "-t", pid, "-n", "-u", "-m", "-p", "--", *command],
                env={**self.environment, **variables}, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self.commands.append(Command(process, path))
        return self.commands[-1]

    def joined(self) -> bool:
        """Return whether `ray start` has succeeded."""
        return "Ray runtime started" in self.log.read_text(errors="replace")

    def kill(self) -> None:
        """Kill all processes of the machine."""
        if self.first is not None:
            self.first.kill()
            self.first.wait()
        for command in self.commands:
            command.process.kill()
            command.process.wait()
        self.first = None


class Cluster:
    """Machines, the first of which is the head."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PYTHONPATH": str(ROOT), "PATH": path, "RAY_TMPDIR": str(folder / "ray"), "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment,
        }  # fmt: skip
        self.machines: dict[str, Machine] = {}
        (folder / "ray").mkdir()
        (folder / "hosts").write_text("127.0.0.1 localhost\n")

    def add(self, name: str, *, command: str = "", hidden: Path | None = None, **variables: str) -> Machine:
        """Start a machine in the network of the first one, the head.

        Without a command, it starts Ray or joins the Ray of the head.
        """
        number = len(self.machines) + 1
        namespace = f"sk{os.getpid()}-{number}"
        machine = Machine(
            name, f"10.77.0.{number}", namespace, self.folder / name,
            {**self.environment, "TMPDIR": str(self.folder / name / "tmp"), **variables}, self.folder / "hosts", hidden,
        )  # fmt: skip
        ip("netns", "add", namespace)
        self.machines[name] = machine
        ip("-n", namespace, "link", "set", "lo", "up")
        head = next(iter(self.machines.values()))
        if machine is head:
            ip("-n", namespace, "link", "add", "lan", "type", "bridge")
            device = "lan"
        else:
            device = "eth0"
            port = f"port{number}"
            ip("-n", head.namespace, "link", "add", port, "type", "veth", "peer", "name", device, "netns", namespace)
            ip("-n", head.namespace, "link", "set", port, "master", "lan", "up")
        ip("-n", namespace, "addr", "add", f"{machine.address}/24", "dev", device)
        ip("-n", namespace, "link", "set", device, "up")
        with open(machine.hosts, "a") as hosts:
            hosts.write(f"{machine.address} {name}\n")
        role = f"--head --port {PORT} --include-dashboard=false" if machine is head else f"--address {self.address}"
        ray_start = (
            f"{sys.executable} -m ray.scripts.scripts start {role} --node-ip-address {machine.address} --num-cpus 1 "
            "--object-store-memory 80000000 --disable-usage-stats --block"
        )
        machine.start(command or ray_start)
        return machine

    @property
    def head(self) -> Machine:
        return next(iter(self.machines.values()))

    @property
    def address(self) -> str:
        return f"{self.head.address}:{PORT}"

    def connect(self, machine: Machine, *, up: bool) -> None:
        """Plug in or pull out the network cable of a machine."""
        number = list(self.machines).index(machine.name) + 1
        ip("-n", self.head.namespace, "link", "set", f"port{number}", "up" if up else "down")

    def stop(self) -> None:
        """Kill all machines, and delete their namespaces."""
        for machine in self.machines.values():
            machine.kill()
            subprocess.run(["ip", "netns", "del", machine.namespace], check=False, capture_output=True)


@contextlib.contextmanager
def cluster(environment: Mapping[str, str]) -> Iterator[Cluster]:
    """Yield a cluster without machines, and remove everything at the end."""
    # Paths of sockets may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="sk", dir="/tmp"))
    machines = Cluster(folder, environment)
    try:
        yield machines
    finally:
        machines.stop()
        shutil.rmtree(folder, ignore_errors=True)


def wait_until(condition: Callable[[], Value], what: str, seconds: float = PATIENCE) -> Value:
    """Wait until a function returns a true value, and return the value."""
    until = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > until:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.5)
    return value
