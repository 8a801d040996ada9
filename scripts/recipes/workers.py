"""Computes runs in several processes at a time, in an order that works."""

import contextlib
import json
import os
import pathlib
import selectors
import subprocess
import sys
import time

from recipes.table import required

_WORKER = pathlib.Path(__file__).with_name("worker.py")


def compute(runs, configs, *, jobs, report):
    """Computes the runs that are not there, and what they need.

    Args:
        runs: The `runs.Runs` to keep them in.
        configs: List of configurations.
        jobs: How many at a time.
        report: Function of a configuration, what went wrong (None: nothing),
            how many runs are over and of how many; called at the end of each.

    Returns:
        The number of runs that failed.
    """
    waiting = missing(runs, configs)
    total, over, failed = len(waiting), 0, set()
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        idle = []
        for _ in range(min(jobs, total)):
            worker = stack.enter_context(_worker())
            selector.register(worker.stdout, selectors.EVENT_READ, worker)
            idle.append(worker)
        busy = {}
        while waiting or busy:
            for key in list(waiting):
                needed = {runs.key(need) for need in required(waiting[key])}
                if needed & failed:
                    config = waiting.pop(key)
                    failed.add(key)
                    over += 1
                    report(config, "what it needs failed", over, total)
                elif idle and not needed & {
                    *waiting,
                    *map(_first, busy.values()),
                }:
                    worker, config = idle.pop(), waiting.pop(key)
                    busy[worker] = (key, config)
                    request = json.dumps([str(runs.folder), config])
                    with contextlib.suppress(BrokenPipeError):
                        worker.stdin.write(f"{request}\n")
                        worker.stdin.flush()
            for event, _ in selector.select() if busy else ():
                worker = event.data
                if worker not in busy:
                    raise RuntimeError(_ended(worker))
                key, config = busy.pop(worker)
                line = worker.stdout.readline()
                if line:
                    error = json.loads(line)
                else:
                    error = _ended(worker)
                    selector.unregister(worker.stdout)
                    worker = stack.enter_context(_worker())
                    selector.register(
                        worker.stdout, selectors.EVENT_READ, worker
                    )
                if error:
                    failed.add(key)
                over += 1
                idle.append(worker)
                report(config, error, over, total)
    return len(failed)


def missing(runs, configs):
    """The runs that are to be computed, key -> configuration, in order.

    Args:
        runs: A `runs.Runs`.
        configs: List of configurations.
    """
    wanted = {}
    for config in configs:
        for one in (*required(config), config):
            wanted.setdefault(runs.key(one), one)
    return {
        key: config
        for key, config in wanted.items()
        if runs.read(config) is None
    }


def _first(pair):
    return pair[0]


@contextlib.contextmanager
def _worker():
    """A process of worker.py, which ends with the body."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(_WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        # Ctrl-C is the parent's to handle.
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def _ended(worker):
    time.sleep(0.1)
    return (
        f"its process ended (code {worker.poll()}); out of memory? Try fewer "
        "--jobs"
    )
