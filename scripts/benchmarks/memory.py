"""Peak memory of a function, in a process of its own."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import pathlib

STATUS = pathlib.Path("/proc/self/status")
# Large blocks go back to the system when they are freed: the C library keeps
# none of them, and oneDNN's pool, which returns nothing, is left out.
_RETURNS_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "TF_ENABLE_ONEDNN_OPTS": "0",
}


def peak(function, *args):
    """Runs a function in a new process.

    Args:
        function: Function that a new process can import.
        *args: Its arguments.

    Returns:
        The most memory that the process held at a time, in bytes.
    """
    return _in_new_process(_measured, function, *args)


def added(prepare, *args):
    """Prepares and runs a step in a new process, twice.

    Freed memory goes back to the system there, so that this is what the step
    has alive at a time, and not what allocators keep for later.

    Args:
        prepare: Function that a new process can import, and that returns the
            step, a function without arguments.
        *args: Its arguments.

    Returns:
        The most memory that the process held during the step, less what it
        held before it, in bytes. What it takes to trace and compile the step
        is in it: subtract the same of a small one.
    """
    with _environment(_RETURNS_MEMORY):
        return _in_new_process(_added, prepare, *args)


def _in_new_process(function, *args):
    with concurrent.futures.ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        return pool.submit(function, *args).result()


@contextlib.contextmanager
def _environment(variables):
    """Sets environment variables, for processes that are started inside."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _measured(function, *args):
    function(*args)
    # Not getrusage: its peak also counts the process that started this one.
    return _status("VmHWM:")


def _added(prepare, *args):
    step = prepare(*args)
    before = _status("VmRSS:")
    for _ in range(2):
        step()
    return _status("VmHWM:") - before


def _status(key):
    """An entry of this process's status, in bytes."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(key):
            return 1024 * int(line.split()[1])
    raise OSError(f"{STATUS} has no entry {key}")
