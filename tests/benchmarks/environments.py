"""Virtual environments, kept between runs."""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from roster import ROOT, Environment


class UnavailableError(Exception):
    """Something cannot take part; the message says why, for the report."""


class Environments:
    """Where the peers' Pythons are.

    **Arguments:**

    - `cache`: the folder that environments are made in.
    - `device`: "cpu" or "gpu", for which they are made.
    - `given`: Pythons to use instead, by the names of environments; by "", for those not named.
    """

    def __init__(self, cache: Path, device: str, given: Mapping[str, str]):
        self._cache, self._device, self._given = cache, device, given

    def python_of(self, environment: Environment) -> Path:
        """Returns an environment's Python, after installing what it does not have yet.

        **Raises:** `UnavailableError` if no Python is new enough or the installation fails.
        """
        given = self._given.get(environment.name, self._given.get(""))
        if given is not None:
            return Path(given)
        requirements = list(environment.requirements)
        if self._device == "gpu":
            requirements += environment.gpu_requirements
        interpreter = _interpreter(environment.min_python)
        folder = self._cache / "environments" / f"{environment.name}-{self._device}"
        python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")

        wanted = "\n".join([interpreter, *requirements])
        if "--editable" in requirements:
            wanted += (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        installed = folder / "installed.txt"  # written last: half an installation has none
        if not installed.exists() or installed.read_text(encoding="utf-8") != wanted:
            print(f"installing {folder}", file=sys.stderr)
            run_or_raise([interpreter, "-m", "venv", "--clear", str(folder)])
            run_or_raise([str(python), "-m", "pip", "install", "--quiet", *requirements])
            installed.write_text(wanted, encoding="utf-8")
        return python


def run_or_raise(command: list[str]) -> None:
    """Runs a command; its last words become the reason if it fails."""
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise UnavailableError(last_line(result.stderr) or f"exit status {result.returncode}")


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


def _interpreter(minimum: tuple[int, int]) -> str:
    if sys.version_info >= minimum:
        return sys.executable
    name = "python{}.{}".format(*minimum)
    found = shutil.which(name)
    # A version manager's stand-in may be on the PATH for a Python that is not switched on.
    if found is None or subprocess.run([found, "--version"], capture_output=True).returncode != 0:
        raise UnavailableError(f"needs {name} on the PATH, or the benchmark run by it")
    return found
