"""`.ci/env.py`: when it installs, when it does not, and what an interrupted or a second run finds."""

import fcntl
import importlib.util
import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "env.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ci_env", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


env = load()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout that needs nothing: empty locks, and a project without a build backend to speak of."""
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "env.py").write_bytes(SCRIPT.read_bytes())
    for name in (*(name for names in env.LOCKS.values() for name in names), "pyproject.toml"):
        (tmp_path / name).write_text("")
    return tmp_path


@pytest.fixture
def environment(checkout: Path) -> Any:
    """An environment that was made by hand, as if an install had just succeeded."""
    made = env.Environment(checkout)
    venv.create(made.folder, symlinks=True, with_pip=False)
    made.write_stamp({"test": made.digest("test")})
    return made


def run(checkout: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(checkout / ".ci" / "env.py"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **variables}, timeout=60
    )


def test_a_command_runs_inside_the_environment(checkout: Path, environment: Any) -> None:
    done = run(checkout, "python", "-c", "import sys; print(sys.prefix)")
    assert (done.stdout.strip(), done.stderr, done.returncode) == (str(environment.folder), "", 0)


def test_the_exit_status_is_the_commands_own(checkout: Path, environment: Any) -> None:
    assert run(checkout, "python", "-c", "raise SystemExit(37)").returncode == 37


def test_options_after_the_command_are_the_commands(checkout: Path, environment: Any) -> None:
    done = run(checkout, "python", "-c", "import sys; print(sys.argv[1:])", "--group", "-x", "--help")
    assert done.stdout.strip() == "['--group', '-x', '--help']"


def test_a_command_that_is_not_there_is_named(checkout: Path, environment: Any) -> None:
    done = run(checkout, "no-such-command")
    assert (done.returncode, done.stderr) == (127, "env: no-such-command: no such command\n")


def test_without_a_command_there_is_help(checkout: Path) -> None:
    done = run(checkout)
    assert done.returncode == 2
    assert "dispatcher demo" in done.stderr


def test_the_dispatcher_needs_no_test_dependencies() -> None:
    assert env.group_of(["dispatcher", "demo"]) == "runtime"
    assert env.group_of(["pytest"]) == "test"


@pytest.mark.parametrize("module", ["benchmarks", "benchmarks.clients"])
def test_only_what_compares_libraries_needs_those(module: str) -> None:
    assert env.group_of(["python", "-m", module, "--quick"]) == "bench"


@pytest.mark.parametrize(
    "command",
    [["python"], ["python", "-m"], ["python", "-m", "benchmarks.day"], ["python", "x.py", "benchmarks"]],
    ids=" ".join,
)
def test_any_other_command_needs_the_tools_of_the_tests(command: list[str]) -> None:
    assert env.group_of(command) == "test"


def test_the_test_dependencies_hold_those_of_the_dispatcher(environment: Any) -> None:
    assert environment.is_ready("test")
    assert environment.is_ready("runtime")
    environment.write_stamp({"runtime": environment.digest("runtime")})
    assert environment.is_ready("runtime")
    assert not environment.is_ready("test")


def test_the_libraries_of_the_comparisons_come_with_all_others(environment: Any) -> None:
    assert not environment.is_ready("bench")
    environment.write_stamp({"bench": environment.digest("bench")})
    assert all(environment.is_ready(group) for group in env.LOCKS)


@pytest.mark.parametrize("name", ["requirements-test.lock", "requirements-bench.lock", "pyproject.toml"])
def test_a_changed_lock_is_not_hidden_by_the_larger_set_that_was_installed(
    checkout: Path, environment: Any, name: str
) -> None:
    environment.write_stamp({"bench": environment.digest("bench")})
    (checkout / name).write_text("changed")
    assert not environment.is_ready("bench")
    assert not environment.is_ready("test")


def test_what_was_installed_before_stays_in_the_stamp(environment: Any) -> None:
    environment.install = lambda group: None
    environment.prepare("bench")
    assert set(environment.installed()) == {"test", "bench"}


@pytest.mark.parametrize("name", ["requirements-test.lock", "pyproject.toml"])
def test_a_changed_lock_or_project_means_to_install_again(checkout: Path, environment: Any, name: str) -> None:
    (checkout / name).write_text("changed")
    assert not environment.is_ready("test")
    assert environment.installed() is not None


def test_an_environment_without_its_stamp_is_not_trusted(environment: Any) -> None:
    environment.stamp.unlink()
    assert environment.installed() is None


@pytest.mark.parametrize("content", ["", "{", "null-ish"])
def test_a_stamp_that_cannot_be_read_is_no_stamp(environment: Any, content: str) -> None:
    environment.stamp.write_text(content)
    assert environment.installed() is None


def test_an_environment_of_another_python_or_place_is_not_trusted(environment: Any) -> None:
    stamp = json.loads(environment.stamp.read_text())
    for position in range(3):
        identity = [*stamp["identity"]]
        identity[position] = "another"
        environment.stamp.write_text(json.dumps({**stamp, "identity": identity}))
        assert environment.installed() is None


def test_an_environment_whose_python_is_gone_is_not_trusted(environment: Any) -> None:
    (environment.bin / "python").unlink()
    assert environment.installed() is None


def test_an_install_that_fails_leaves_no_stamp_and_shows_why(checkout: Path, environment: Any) -> None:
    (checkout / "requirements-test.lock").write_text("not a requirement ###\n")
    done = run(checkout, "python", "--version")
    assert done.returncode == 1
    assert "installing failed" in done.stderr
    assert environment.installed() is None


def test_a_python_that_can_make_no_environment_is_told_what_to_install(checkout: Path) -> None:
    made = env.Environment(checkout, python="/bin/false")
    with pytest.raises(env.SetupError, match=r"apt-get install python3\.\d+-venv"):
        made.make()


def test_a_second_run_waits_for_the_first(checkout: Path, environment: Any) -> None:
    script = checkout / ".ci" / "env.py"
    command = [sys.executable, str(script), "python", "-c", "print('ran')"]
    with script.open("rb") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as second:
            assert second.stderr is not None
            assert second.stderr.readline() == "env: waiting for another run to finish installing\n"
            assert second.poll() is None
            fcntl.flock(first, fcntl.LOCK_UN)
            assert second.communicate(timeout=30) == ("ran\n", "")


def test_the_lock_is_not_held_while_the_command_runs(checkout: Path, environment: Any) -> None:
    code = f"import fcntl; fcntl.flock(open({str(checkout / '.ci' / 'env.py')!r}), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    assert run(checkout, "python", "-W", "ignore", "-c", code).returncode == 0


def fake(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_a_python_is_found_by_what_it_says_it_is(tmp_path: Path) -> None:
    assert env.works(str(fake(tmp_path, "good", "echo 3.13")), "3.13")
    assert not env.works(str(fake(tmp_path, "shim", "exit 127")), "3.13")
    assert not env.works(str(fake(tmp_path, "liar", "echo 3.10")), "3.13")
    assert not env.works(str(tmp_path / "absent"), "3.13")


def test_a_python_that_pyenv_holds_is_found_behind_a_dead_shim(checkout: Path, tmp_path: Path) -> None:
    path = tmp_path / "path"
    fake(path, "python3.13", "exit 127")
    fake(path, "pyenv", f"echo {tmp_path}/held")
    (tmp_path / "held").mkdir()
    real = fake(tmp_path / "held" / "bin", "python3.13", "echo 3.13")
    done = run(checkout, "--find", "3.13", PATH=f"{path}:/usr/bin:/bin")
    assert (done.returncode, done.stdout.strip()) == (0, str(real))


def test_a_python_that_is_nowhere_is_not_found(checkout: Path, tmp_path: Path) -> None:
    done = run(checkout, "--find", "3.99", PATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")


def test_the_locks_name_no_index_and_carry_a_hash_for_each_package() -> None:
    for name in {name for names in env.LOCKS.values() for name in names}:
        lines = (SCRIPT.parents[1] / name).read_text().splitlines()
        assert not [line for line in lines if "://" in line or line.startswith("-")]
        pinned = [number for number, line in enumerate(lines) if "==" in line.partition(";")[0]]
        assert pinned
        assert all("--hash=sha256:" in lines[number + 1] for number in pinned)


def test_the_locks_agree_on_each_release() -> None:
    """Whoever installs one set after another gets what was tested together."""
    tested, compared = (releases(name) for name in env.LOCKS["bench"])
    assert tested.keys() & compared.keys()
    assert all(compared[name] == tested[name] for name in tested.keys() & compared.keys())


def releases(lock: str) -> dict[str, set[str]]:
    """{package: releases} of a lock; there may be one for each of several Pythons."""
    found: dict[str, set[str]] = {}
    for line in (SCRIPT.parents[1] / lock).read_text().splitlines():
        name, pinned, release = line.partition("==")
        if pinned and name[:1].isalnum():
            found.setdefault(name, set()).add(release.split()[0])
    return found
