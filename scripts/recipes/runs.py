"""Runs that are kept: each is computed once, whoever asks for it."""

import contextlib
import fcntl
import hashlib
import importlib
import json
import os
import pathlib
import platform
import re
import time

import common
import keras

import tfkd
from tfkd.export import replacing

_CONTENT = {"config", "results", "seconds", "made", "network"}


class Runs:
    """A folder with a file for each run that came to its end.

    Args:
        folder: Path of the folder; made when something is kept.
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)

    def key(self, config):
        """Short text that tells runs apart.

        Args:
            config: The run's configuration.

        Returns:
            16 hexadecimal digits, of the configuration and tfkd's version.
        """
        text = json.dumps([tfkd.__version__, config], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def read(self, config):
        """What is kept of a run.

        Returns:
            Dict with "config", "results", "seconds", "made", which says where
            and when, and "network", whether it has kept one; None if it has
            not come to its end, or its network is gone.

        Raises:
            ValueError: If the file is damaged.
        """
        path = self._path(config, ".json")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(found, dict) or not found.keys() >= _CONTENT:
                raise ValueError("it lacks what a run has")
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(
                f"'{path}' is damaged ({error}). Delete it to run it anew."
            ) from error
        if found["network"] and not self.network_path(config).exists():
            return None
        return found

    def network_path(self, config):
        """Where the network of a run is, or is to be."""
        return self._path(config, ".keras")

    def keep_network(self, config, network):
        """Keeps the network of a run that others need."""
        with replacing(self.network_path(config)) as path:
            network.save(path)

    def network(self, config):
        """The network that a run has kept."""
        return keras.saving.load_model(
            self.network_path(config), compile=False, safe_mode=True
        )

    def compute(self, config):
        """Runs a run unless it is there; waits if another process is at it.

        What it needs must be there.

        Args:
            config: The run's configuration.
        """
        with self._alone(config):
            if self.read(config) is not None:
                return
            start = time.perf_counter()
            results = _task(config["task"])(config, self)
            content = {
                "config": config,
                "results": results,
                "seconds": round(time.perf_counter() - start, 2),
                "made": _made(),
                "network": self.network_path(config).exists(),
            }
            text = json.dumps(content, indent=1, allow_nan=False)
            with replacing(self._path(config, ".json")) as path:
                path.write_text(text + "\n", encoding="utf-8")

    def _path(self, config, suffix):
        return self.folder / f"{self.key(config)}{suffix}"

    @contextlib.contextmanager
    def _alone(self, config):
        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with (locks / self.key(config)).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _made():
    """On what, and on which day."""
    versions = common.versions()
    machine = versions.pop("machine")
    software = ", ".join(f"{name} {v}" for name, v in versions.items())
    today = time.strftime("%Y-%m-%d")
    return f"{_processor()}, {machine}; {software}; {today}"


def _processor():
    """The processor's name."""
    cpus = pathlib.Path("/proc/cpuinfo")
    if os.path.exists(cpus):
        found = re.search(r"model name\s*:\s*(.+)", cpus.read_text())
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _task(name):
    module, _, function = name.partition(".")
    return getattr(importlib.import_module(f"recipes.{module}"), function)
