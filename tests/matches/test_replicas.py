"""Every method on two replicas of one process, and on one device."""

import os
import pathlib
import subprocess
import sys

TESTS = pathlib.Path(__file__).parents[1]


def test_two_replicas_equal_one_device():
    """Logs, changes of weights, moving statistics and banks.

    Of every method with its stages and of transfer; batches that replicas
    cannot share evenly, sample weights, class weights.
    """
    done = subprocess.run(
        [sys.executable, TESTS / "replicated.py", "mirrored"],
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip().endswith("equal"), done.stderr[-3000:]
