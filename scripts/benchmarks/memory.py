"""Peak memory of a function, in a process of its own."""

import concurrent.futures
import multiprocessing
import pathlib

STATUS = pathlib.Path("/proc/self/status")


def peak(function, *args):
    """Runs a function in a new process.

    Args:
        function: Function that a new process can import.
        *args: Its arguments.

    Returns:
        The most memory that the process held at a time, in bytes.
    """
    with concurrent.futures.ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        return pool.submit(_measured, function, *args).result()


def _measured(function, *args):
    function(*args)
    # Not getrusage: its peak also counts the process that started this one.
    for line in STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"{STATUS} tells no peak of memory.")
