"""The process: signals, streams, and what it ends with where not even the command line can be loaded."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from netsweep import __version__
from netsweep.__main__ import Signalled
from netsweep.cli import run

NETSWEEP = (sys.executable, "-m", "netsweep")


def stop() -> None:
    raise Signalled(signal.SIGTERM)


def test_a_signal_gets_through_asyncio_which_ends_most_exceptions_in_callbacks() -> None:
    loop = asyncio.new_event_loop()
    try:
        loop.call_soon(stop)
        with pytest.raises(Signalled) as stopped:
            loop.run_forever()
    finally:
        loop.close()
    assert stopped.value.exit_status == 143


def test_a_signal_gets_through_click() -> None:
    with pytest.raises(Signalled):
        click.Command("stop", callback=stop).main([], standalone_mode=False)


def test_a_signal_that_falls_into_a_callback_of_a_weak_reference_is_not_lost() -> None:
    """As those of importlib's locks: Python tells of an exception there, and goes on."""
    program = """
import os, signal, time, weakref
from netsweep import __main__

class Lock: pass

def run(arguments):
    lock = Lock()
    reference = weakref.ref(lock, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    del lock
    time.sleep(30)

__main__._run = run
__main__.main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 143
    assert done.stderr == "netsweep: stopped by SIGTERM: no table is half-changed and all locks are released\n"


def netsweep(*arguments: str, shell: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run netsweep, with streams sent elsewhere by the shell."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {shell}', "sh", *NETSWEEP, *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
    )


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_the_module_is_the_program(option: str) -> None:
    done = netsweep(option)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"netsweep, version {__version__}\n", "")


@pytest.mark.parametrize("option", ["--version", "--help"])
@pytest.mark.parametrize(
    ("shell", "reason"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")]
)
def test_a_stdout_that_takes_nothing_is_one_clear_failure(option: str, shell: str, reason: str) -> None:
    done = netsweep(option, shell=shell)
    assert (done.returncode, done.stderr) == (1, f"netsweep: could not write to stdout: {reason}\n")


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (["--help"], {}),
        (["list", "--help"], {}),
        (["--version"], {}),
        (["profiles"], {}),
        (["profiles", "docker"], {}),
        ([], {"_NETSWEEP_COMPLETE": "bash_source"}),
    ],
)
def test_a_reader_that_has_gone_ends_it_in_silence(arguments: list[str], variables: dict[str, str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [*NETSWEEP, *arguments],
            check=False,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            env={**os.environ, **variables},
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize("shell", ["<&-", "2>&-", "<&- 2>&-"])
def test_other_streams_that_are_closed_do_not_matter(shell: str) -> None:
    done = netsweep("--version", shell=shell)
    assert (done.returncode, done.stdout) == (0, f"netsweep, version {__version__}\n")


def test_a_completion_script_is_written() -> None:
    done = netsweep(_NETSWEEP_COMPLETE="bash_source")
    assert (done.returncode, done.stderr) == (0, "")
    assert "_netsweep_completion" in done.stdout


def broken(tmp_path: Path, module: str, content: str) -> str:
    """A PYTHONPATH on which ``module`` cannot be imported."""
    (tmp_path / f"{module}.py").write_text(content)
    return os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (
            "raise ModuleNotFoundError(\"No module named 'click'\")",
            69,
            "No module named 'click': install netsweep-firewall again",
        ),
        ("raise MemoryError", 1, "out of memory"),
        ("raise OSError(24, 'Too many open files')", 1, "too many open files: raise the limit (ulimit -n)"),
    ],
)
def test_what_cannot_be_loaded_is_told_and_best_effort_holds(
    tmp_path: Path, content: str, status: int, said: str
) -> None:
    path = broken(tmp_path, "click", content)
    for arguments, variables, expected in (
        (["sweep"], {}, status),
        (["list", "--best-effort"], {}, status),
        (["sweep", "--best-effort"], {}, 0),
        (["sweep"], {"NETSWEEP_BEST_EFFORT": "true"}, 0),
    ):
        done = netsweep(*arguments, PYTHONPATH=path, **variables)
        assert done.returncode == expected
        assert said in done.stderr
        assert done.stderr.startswith("netsweep: ")
        assert done.stderr.count("\n") == 1


def limited(megabytes: int, *command: str) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    # Not measured: the tracer of coverage crashes where it gets no memory.
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    return subprocess.run(
        command, check=False, capture_output=True, text=True, preexec_fn=limit, timeout=60, env=unmeasured
    )


def test_too_little_memory_is_one_line_and_no_traceback() -> None:
    """From hardly enough for the process to begin to enough for a help text."""
    begin = (sys.executable, "-c", "import netsweep.__main__")
    least = next(megabytes for megabytes in range(8, 512, 2) if limited(megabytes, *begin).returncode == 0)
    statuses = set()
    for megabytes in range(least, least + 40, 4):
        done = limited(megabytes, *NETSWEEP, "sweep", "--help")
        statuses.add(done.returncode)
        assert "Traceback" not in done.stderr
        assert "bug" not in done.stderr
        assert "install" not in done.stderr
        assert done.stderr.count("\n") <= 1
    assert statuses == {0, 1}


def test_a_signal_while_loading_ends_with_its_status_and_one_line(tmp_path: Path) -> None:
    path = broken(tmp_path, "click", "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)")
    done = netsweep("sweep", "--best-effort", PYTHONPATH=path)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr == "netsweep: stopped by SIGTERM: no table is half-changed and all locks are released\n"


def test_help_without_a_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    said = capsys.readouterr()
    assert "Usage: netsweep" in said.out + said.err
