"""Starts the measured programs, pinned to a core, and reads their use of the machine."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

GATEWAY_CORE = 0
LOAD_CORE = 1

TICK = os.sysconf("SC_CLK_TCK")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def unwind_when_terminated():
    """Makes a signal that ends this program an exception, so that what it has started is stopped: a `Process` has a
    session of its own, which no signal to this program or its group reaches."""

    def leave(number, _):
        # `timeout` sends two: the second one must not interrupt what the first one has begun.
        signal.signal(number, lambda *_: None)
        sys.exit(128 + number)

    for number in (signal.SIGHUP, signal.SIGTERM):
        # Under nohup, SIGHUP stays ignored.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, leave)


class Running:
    """A program that runs, with its children."""

    def __init__(self, pid):
        if not _stat(pid):
            raise RuntimeError(f"there is no process {pid}")
        self.pid = pid

    def pids(self):
        parents = {}
        for name in os.listdir("/proc"):
            if name.isdigit() and (fields := _stat(int(name))):
                parents[int(name)] = int(fields[1])
        found = [self.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def cpu(self):
        """CPU seconds used so far, ended children included."""
        total = 0
        for pid in self.pids():
            fields = _stat(pid)
            if fields:
                total += sum(int(fields[index]) for index in (11, 12, 13, 14))
        return total / TICK

    def rss(self):
        """Resident bytes, summed over its processes; shared memory counts for each."""
        return self._status("VmRSS")

    def peak(self):
        """The peak of resident bytes, summed the same way."""
        return self._status("VmHWM")

    def _status(self, field):
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as file:
                total += sum(int(line.split()[1]) << 10 for line in file if line.startswith(f"{field}:"))
        return total


class Process(Running):
    """A program started here: a session of its own, pinned to one core."""

    def __init__(self, command, core, log, env=None, cwd=None, user=None):
        self.started = time.monotonic()
        self.command = command
        with open(log, "ab") as output:
            self.child = subprocess.Popen(
                ["taskset", "-c", str(core), *map(str, command)],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                start_new_session=True,
                user=user,
            )
        self.pid = self.child.pid
        self.log = log

    def pids(self):
        """Every process of the session: a child whose parent has ended belongs to it too."""
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                fields = _stat(int(name))
                if fields and int(fields[3]) == self.child.pid:
                    found.append(int(name))
        return found

    def wait_for(self, answers, timeout=120):
        """Waits until `answers()` is true; returns the seconds since the start."""
        while time.monotonic() - self.started < timeout:
            if self.child.poll() is not None:
                raise RuntimeError(f"{self.command[0]} ended with {self.child.returncode}; see {self.log}")
            with contextlib.suppress(OSError):
                if answers():
                    return time.monotonic() - self.started
            time.sleep(0.002)
        raise RuntimeError(f"{self.command[0]} does not answer; see {self.log}")

    def stop(self, timeout=40):
        if self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(timeout)
            except subprocess.TimeoutExpired:
                pass
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.child.wait()


def _stat(pid):
    """The fields of /proc/PID/stat after the name, which may hold spaces: state is 0, parent 1, session 3, utime 11."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return None


def listens(port):
    """For `wait_for`: whether a server accepts connections there."""

    def answers():
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True

    return answers


def get(url, headers=None, timeout=10):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=timeout) as answer:
        return answer.read().decode()
