"""Ctrl-C: exit code 130 within a second, no traceback, nothing half-written, at every moment of every command.

A signal is sent from outside at random moments, or from an audit hook at a chosen event of Python's own.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from checkpoints import VOCABULARY, write_checkpoint, write_tokenizer

from mlx_qwen3 import interrupt

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "MLX_QWEN3_BLAS": "none", "PYTHONPATH": str(ROOT)}
ALLOWED = 3.0  # seconds: one is promised, and the machine that runs the tests may be busy
LIMIT = 60.0  # seconds after which something hangs
AFTERWARDS = 0.5  # of the time of a whole command: in this a command that has done its work may end with 0
MOMENTS = 4  # of each command; the slow test has 20
# Sends SIGINT at one of the imports after that of ctypes, which the package loads next after its handler.
AT_IMPORT = """
import os, runpy, signal, sys
left = None
def hook(event, arguments):
    global left
    if event == "import":
        left = int(point) if arguments[0] == "ctypes" else left and left - 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGINT)
    # the script is told by its name that it is a command
point, sys.argv = sys.argv[1], sys.argv[2:]
sys.addaudithook(hook)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """Two layers, wide enough that every command takes a second or so in NumPy and MLX."""
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "vocab_size": VOCABULARY, "eos_token_id": 258}
    return write_tokenizer(write_checkpoint(tmp_path_factory.mktemp("chat"), **sizes))


@pytest.fixture(scope="module")
def converted(chat, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "out"
    finish(start("convert.py", chat, out, "--dtype", "bf16"))
    return out


def answer_sigint():
    """Also where the tests run as a job in the background, which ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def start(*words):
    script = [ROOT / words[0]] if str(words[0]).endswith(".py") else ["-m", "mlx_qwen3", words[0]]
    command = [sys.executable, *map(str, script), *map(str, words[1:])]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        cwd=ROOT,
        preexec_fn=answer_sigint,
        start_new_session=True,  # a group of its own, in which it must leave nobody
    )


def finish(process):
    _, stderr = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, stderr


def wait_for_handler(process):
    """Python's own start is not ours. The package loads ctypes next after its handler is in place."""
    maps = Path(f"/proc/{process.pid}/maps")
    if not maps.exists():
        time.sleep(0.3)
    while maps.exists() and process.poll() is None and "_ctypes" not in maps.read_text():
        time.sleep(0.001)


def commands(chat, converted, out):
    return {
        "convert": ("convert.py", chat, out, "--quantize", "mixed"),
        "overwrite": ("convert.py", chat, out, "--dtype", "bf16", "--overwrite"),
        "verify": ("verify", converted, "--source", chat),
        "inspect": ("inspect", chat, "--json"),
        "bench": ("bench", chat, "--against", "mlx-qwen3:fp32", *"--prompt-tokens 5 --generate 4 --repeat 1".split()),
        "generate": ("generate.py", "--prompt", "hi", "--model", chat, "--max-tokens", "400", "--seed", "1", "--json"),
    }


def interrupted(command, at, duration, out):
    """Send SIGINT after a share `at` of the whole command's seconds; False if the command had ended by then."""
    before = listing(out)
    process = start(*command)
    wait_for_handler(process)
    with suppress(subprocess.TimeoutExpired):
        process.wait(at * duration)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    stdout, stderr = process.communicate(timeout=LIMIT)
    took = time.monotonic() - sent
    if process.returncode == 0:  # not lost, but too late
        assert took < AFTERWARDS * duration
        return False
    assert (process.returncode, b"Traceback" in stderr, b"error" in stderr) == (130, False, False), stderr
    assert took < ALLOWED + duration  # on a machine so busy that a command takes long, its end does too
    assert stdout == b"" or stdout.endswith(b"\n")
    assert listing(out) == before or complete(out) or kept(out, before, stderr)
    wait_for_others(process.pid)
    return True


def wait_for_others(group):
    """Wait until the processes that a command has started have ended too."""
    deadline = time.monotonic() + LIMIT
    with suppress(ProcessLookupError):
        while True:
            os.killpg(group, 0)
            assert time.monotonic() < deadline, "a process is left"
            time.sleep(0.01)


def listing(out):
    return sorted(path.name for path in out.parent.iterdir()), read(out)


def read(out):
    return {path.name: path.read_bytes() for path in out.iterdir()} if out.exists() else None


def complete(out):
    """The whole result, and nothing beside it: the signal came after it was published."""
    return [path.name for path in out.parent.iterdir()] == [out.name] and (out / "certificate.json").exists()


def kept(out, before, stderr):
    """OUT is as it was, and the last line says that finished files of a conversion are kept."""
    work = out.parent / f".{out.name}.partial"
    said = [b"", *stderr.splitlines()][-1].endswith(f" kept in {work}; rerun the command to resume".encode())
    (names, content), left = before, work.exists() and shutil.rmtree(work) is None
    return said and left and listing(out) == (names, content)


NAMES = ("convert", "overwrite", "verify", "inspect", "generate")  # `bench` takes long


def strike(name, chat, converted, folder, moments):
    """Random moments, spread over the whole run."""
    out = folder / "place" / "out"
    out.parent.mkdir()
    command = commands(chat, converted, out)[name]
    if name == "overwrite":
        finish(start(*command))
    process = start(*command)
    wait_for_handler(process)
    began = time.monotonic()
    finish(process)
    duration = time.monotonic() - began
    draw = random.Random(name)
    hits = 0
    for moment in range(moments):
        if name == "convert" and out.exists():
            shutil.rmtree(out)
        at = (moment + draw.random()) / moments
        if interrupted(command, at, duration, out):
            hits += 1
        else:  # it takes less time than when it was measured, on a machine that was busier
            duration *= at
    assert hits >= moments / 2


@pytest.mark.parametrize("name", NAMES)
def test_at_random_moments(name, chat, converted, tmp_path):
    strike(name, chat, converted, tmp_path, MOMENTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, "bench"])
def test_at_many_random_moments(name, chat, converted, tmp_path):
    strike(name, chat, converted, tmp_path, 20)


@pytest.mark.parametrize("point", [1, 2, 4, *random.Random(1).sample(range(5, 250), 7)])
def test_while_the_package_is_imported(point, chat):
    words = [ROOT / "generate.py", "--prompt", "hi", "--model", chat, "--max-tokens", "2"]
    command = [sys.executable, "-c", AT_IMPORT, point, *words]
    result = subprocess.run(list(map(str, command)), capture_output=True, env=ENVIRONMENT, cwd=ROOT, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (130, b"", b"")


@pytest.mark.skipif(sys.platform != "linux", reason="MLX looks for g++ if it computes on a CPU")
def test_while_mlx_looks_for_a_compiler(chat, tmp_path):
    """MLX runs a shell with `system`, which ignores the signal. This g++ interrupts the parent of its shell."""
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\nread _ _ _ command _ < /proc/$PPID/stat\nkill -INT $command\n")
    compiler.chmod(0o755)
    words = [sys.executable, ROOT / "generate.py", "--prompt", "hi", "--model", chat, "--max-tokens", "100"]
    environment = {**ENVIRONMENT, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result = subprocess.run(words, capture_output=True, env=environment, preexec_fn=answer_sigint, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (130, b"", b"")


@pytest.mark.parametrize(
    ("given", "name", "is_command"),
    [
        (["python", "-m", "mlx_qwen3", "generate"], "-m", True),
        (["python", "-P", "-m", "mlx_qwen3"], "-m", True),
        (["python", "-m", "pytest", "mlx_qwen3"], "-m", False),
        (["python", "/bin/mlx-qwen3", "chat"], "/bin/mlx-qwen3", True),
        (["python", "generate.py"], str(ROOT / "generate.py"), True),
        (["python", "generate.py"], "/elsewhere/generate.py", False),
        (["python", "server.py"], "server.py", False),
        (["python"], "", False),
        (["python", "-c", "import mlx_qwen3"], "-c", False),
    ],
)
def test_only_our_commands_get_the_handler_at_import(given, name, is_command, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", given)
    monkeypatch.setattr(sys, "argv", [name])
    assert interrupt.is_command() == is_command


def test_a_program_that_imports_the_package_keeps_its_own_answer():
    program = "import signal, mlx_qwen3; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, check=True, preexec_fn=answer_sigint)


def test_a_job_that_ignores_ctrl_c_still_ignores_it():
    """As `nohup` and `&` in a script start one."""
    program = (
        "import os, signal; from mlx_qwen3 import interrupt; interrupt.install(); interrupt.watch(); "
        "os.kill(os.getpid(), signal.SIGINT); print('still here')"
    )
    ignoring = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    result = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, **ignoring)
    assert (result.returncode, result.stdout) == (0, b"still here\n")


HANDLER = """
import os, signal, sys, time
from mlx_qwen3 import interrupt
interrupt.install()
interrupt.watch()
def interrupt_me(): os.kill(os.getpid(), signal.SIGINT)
"""
CASES = {
    "clean-ups run, the last first, and a failing one stops none": (
        "interrupt.register(lambda: os.write(1, b'1'))\n"
        "with interrupt.cleaning(lambda: os.write(1, b'no')): pass\n"
        "with interrupt.cleaning(lambda: 1 / 0), interrupt.cleaning(lambda: os.write(1, b'2')): interrupt_me()\n",
        b"21",
    ),
    "a postponed block is finished": (
        "with interrupt.postponed() as asked:\n"
        "    with interrupt.postponed(): interrupt_me()\n"
        "    os.write(1, b'inside' if asked() else b'early')\n"
        "os.write(1, b'after')\n",
        b"inside",
    ),
    "a block that holds the signal back is finished": (
        "with interrupt.held():\n    interrupt_me()\n    os.write(1, b'inside')\nos.write(1, b'after')\n",
        b"inside",
    ),
    "an error in a postponed block is one too": (
        "with interrupt.postponed():\n    interrupt_me()\n    raise RuntimeError\n",
        b"",
    ),
    "the second Ctrl-C does not wait": (
        "with interrupt.postponed():\n    interrupt_me()\n    interrupt_me()\n    os.write(1, b'late')\n",
        b"",
    ),
    "a clean-up that is interrupted is run again": (
        "tries = []\n"
        "def clean():\n"
        "    tries.append(1)\n"
        "    if len(tries) == 1: interrupt_me()\n"
        "    os.write(1, b'cleaned %d' % len(tries))\n"
        "interrupt.register(clean)\n"
        "interrupt_me()\n",
        b"cleaned 2",
    ),
    "last words come after the clean-ups": (
        "interrupt.last_words('one')\n"
        "interrupt.last_words('two')\n"
        "os.dup2(1, 2)\n"
        "interrupt.register(lambda: os.write(1, b'cleaned '))\n"
        "interrupt_me()\n",
        b"cleaned two\n",
    ),
    "a long call into C is cut": (
        "interrupt.register(lambda: os.write(1, b'cleaned'))\n"
        "import threading; threading.Timer(0.1, interrupt_me).start()\n"
        "import ctypes; ctypes.CDLL(None).sleep(300) or ctypes.CDLL(None).sleep(300)\n",
        b"cleaned",
    ),
}


@pytest.mark.parametrize(("program", "stdout"), CASES.values(), ids=CASES.keys())
def test_the_handler(program, stdout):
    command = [sys.executable, "-c", HANDLER + program]
    began = time.monotonic()
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, preexec_fn=answer_sigint)
    assert (result.returncode, result.stdout) == (130, stdout), result.stderr
    assert time.monotonic() - began < 150  # far from the 300 of the long call
