#!/usr/bin/env python3
"""Runs a command in this checkout's own virtual environment, which it makes, or brings up to date, first.

    python3 .ci/env.py dispatcher demo
    python3 .ci/env.py pytest
    python3 .ci/env.py python -m benchmarks

The environment is `.venv-<major>.<minor>`, one for each Python; the system's own packages are neither used nor touched.
`dispatcher …` installs what it needs to run and no more, anything else the tools of the tests as well, and the benchmarks
that compare libraries also those; each from locks with hashes, by pip and from wherever pip is set up to look.

The stamp in the environment is its truth: it is removed before anything changes and written after everything has, so an
environment without one was interrupted, and is made anew. A lock on this very file keeps a second run waiting. Standard
library only; the syntax stays readable to old Pythons, so that they can say what is missing.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

OLDEST = (3, 11)
KNOWN = ("3.13", "3.12", "3.11", "3.14")
LOCKS = {
    "runtime": ("requirements.lock", "requirements-build.lock"),
    "test": ("requirements-test.lock",),
    "bench": ("requirements-test.lock", "requirements-bench.lock"),
}
SATISFIED_BY = {"runtime": ("runtime", "test", "bench"), "test": ("test", "bench"), "bench": ("bench",)}
COMPARING = (["python", "-m", "benchmarks"], ["python", "-m", "benchmarks.clients"])
CHECKOUT = Path(__file__).resolve().parent.parent


class SetupError(Exception):
    """Something that the person who ran this has to mend; `main` prints it."""


def say(text):
    print(f"env: {text}", file=sys.stderr, flush=True)


# --- which Python ----------------------------------------------------------------------------------------------------


def interpreters(version):
    """Paths that may hold Python `version`: on PATH, then what pyenv has installed."""
    on_path = shutil.which(f"python{version}")
    if on_path:
        yield on_path
    pyenv = shutil.which("pyenv")
    if pyenv:
        found = subprocess.run([pyenv, "prefix", version], capture_output=True, text=True, check=False)
        if found.returncode == 0:
            yield str(Path(found.stdout.strip(), "bin", f"python{version}"))


def works(python, version):
    """Whether it runs, and is what its name says: a pyenv shim may be neither."""
    try:
        said = subprocess.run(
            [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return False
    return said.returncode == 0 and said.stdout.strip() == version


def find(versions):
    """The first interpreter that is one of `versions`, or None."""
    for version in versions:
        for python in interpreters(version):
            if works(python, version):
                return python
    return None


def run_with_a_newer_python(arguments):
    """Starts over with a Python that is new enough; does not return."""
    here = ".".join(map(str, sys.version_info[:2]))
    needed = ".".join(map(str, OLDEST))
    newer = find(KNOWN)
    if newer is None:
        raise SetupError(f"this is Python {here}; {needed} or newer is needed, and none is on PATH")
    say(f"this is Python {here}; using {newer}")
    os.execv(newer, [newer, __file__, *arguments])  # noqa: S606


# --- the environment -------------------------------------------------------------------------------------------------


class Environment:
    """A virtual environment and the stamp that says what is in it."""

    def __init__(self, checkout, python=None):
        self.checkout = checkout
        self.python = python or getattr(sys, "_base_executable", None) or sys.executable
        self.folder = checkout / ".venv-{}.{}".format(*sys.version_info)
        self.bin = self.folder / "bin"
        self.stamp = self.folder / "stamp.json"

    def identity(self):
        """What an environment cannot outlive: its interpreter and its place (scripts hold both)."""
        return [sys.version, os.path.realpath(self.python), str(self.folder)]

    def digest(self, group):
        digest = hashlib.sha256()
        for name in (*LOCKS[group], "pyproject.toml"):
            digest.update(hashlib.sha256((self.checkout / name).read_bytes()).digest())
        return digest.hexdigest()

    def installed(self):
        """{group: digest} of what is installed; None where there is no sound environment."""
        try:
            stamp = json.loads(self.stamp.read_text())
        except (OSError, ValueError):
            return None
        sound = stamp["identity"] == self.identity() and (self.bin / "python").exists()
        return stamp["groups"] if sound else None

    def is_ready(self, group):
        installed = self.installed() or {}
        return any(installed.get(name) == self.digest(name) for name in SATISFIED_BY[group])

    def prepare(self, group):
        """Makes the environment hold the group, if it does not yet."""
        if self.is_ready(group):
            return
        groups = self.installed()
        if groups is None:
            say(f"making {self.folder.name} with the {group} dependencies; the first time takes a minute or two")
            self.make()
        else:
            say(f"bringing {self.folder.name} up to date with the {group} dependencies")
        self.stamp.unlink(missing_ok=True)
        self.install(group)
        self.write_stamp({**(groups or {}), group: self.digest(group)})

    def make(self):
        """An empty environment that pip can install into.

        Some distributions split `venv` up: without its `ensurepip`, virtualenv or the system's own pip will do.
        """
        python, folder = self.python, str(self.folder)
        ways = (
            [python, "-m", "venv", "--clear", folder],
            [python, "-m", "virtualenv", "--quiet", "--clear", folder],
            [python, "-m", "venv", "--clear", "--without-pip", folder],
        )
        for create in ways:
            if succeeds(create) and succeeds([*self.pip(), "--version"]):
                return
        version = "{}.{}".format(*sys.version_info)
        raise SetupError(
            f"{python} can make no virtual environment: it has neither ensurepip nor virtualenv nor pip. "
            f"On Debian and Ubuntu: apt-get install python{version}-venv"
        )

    def pip(self):
        """The pip that installs into the environment: its own, or the system's from outside."""
        own = [str(self.bin / "python"), "-m", "pip"]
        return own if succeeds([*own, "--version"]) else [self.python, "-m", "pip", "--python", str(self.folder)]

    def install(self, group):
        base = [*self.pip(), "install", "--quiet", "--disable-pip-version-check", "--no-input"]
        locks = [word for name in LOCKS[group] for word in ("--requirement", str(self.checkout / name))]
        check([*base, "--require-hashes", *locks])
        # The build backend came with the lock, so nothing is downloaded outside it.
        check([*base, "--no-deps", "--no-build-isolation", "--editable", str(self.checkout)])

    def write_stamp(self, groups):
        fresh = self.stamp.with_suffix(".new")
        fresh.write_text(json.dumps({"identity": self.identity(), "groups": groups}))
        fresh.replace(self.stamp)

    def variables(self):
        """The environment variables of a command that runs in here."""
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONHOME"}
        path = os.pathsep.join([str(self.bin), variables.get("PATH", os.defpath)])
        return {**variables, "VIRTUAL_ENV": str(self.folder), "PATH": path}


def succeeds(command):
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def check(command):
    """Runs an installer; what it says is shown only if it fails."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if done.returncode != 0:
        sys.stderr.write(done.stdout.decode(errors="replace"))
        raise SetupError("installing failed (above); run the same command again once that is mended")


@contextmanager
def alone(path):
    """Only one run at a time changes the environments; a process that dies lets go."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another run to finish installing")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --- the command -----------------------------------------------------------------------------------------------------


def group_of(command):
    """`dispatcher …` runs without the tools of the tests, and few commands need the libraries of the comparisons."""
    if command[0] == "dispatcher":
        return "runtime"
    return "bench" if command[:3] in COMPARING else "test"


def parse(arguments):
    parser = argparse.ArgumentParser(
        prog="env.py",
        description="Runs COMMAND in this checkout's virtual environment (.venv-X.Y), which is made or brought up to date first.",
    )
    parser.add_argument("--group", choices=sorted(LOCKS), help="what to install (default: what COMMAND needs)")
    parser.add_argument(
        "--find", metavar="X.Y", help="print the path of a Python of that version and exit; status 1 if there is none"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND [ARGUMENT ...]")
    options = parser.parse_args(arguments)
    if not options.command and not options.find:
        parser.error("a command is needed, such as: dispatcher demo")
    return options


def run(options):
    """Prepares the environment and becomes the command, so that its exit status and its signals are its own."""
    environment = Environment(CHECKOUT)
    with alone(Path(__file__)):
        environment.prepare(options.group or group_of(options.command))
    variables = environment.variables()
    program = shutil.which(options.command[0], path=variables["PATH"])
    if program is None:
        say(f"{options.command[0]}: no such command")
        return 127
    os.execve(program, options.command, variables)  # noqa: S606
    return None


def main(arguments):
    try:
        if sys.version_info < OLDEST:
            run_with_a_newer_python(arguments)
        options = parse(arguments)
        if options.find:
            python = find([options.find])
            print(python or "", end="\n" if python else "")
            return 0 if python else 1
        return run(options)
    except SetupError as error:
        say(error)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
