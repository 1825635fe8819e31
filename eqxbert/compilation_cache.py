"""Compiled programs kept on disk, so that another process need not compile them again."""

import hashlib
import os
import platform
from os import PathLike
from pathlib import Path
from typing import Any

import jax


def enable_compilation_cache(folder: str | PathLike[str] | None = None) -> Path | None:
    """Has JAX keep the programs that it compiles in a folder, and look for them there first. The
    command line does so by itself.

    Call it before anything is computed. What the user has set for JAX itself takes precedence: the
    folder in `JAX_COMPILATION_CACHE_DIR`, the least time of a compilation that is worth keeping
    (`JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS`; otherwise 0.1 seconds here), and
    `JAX_ENABLE_COMPILATION_CACHE=false`, which turns it off.

    **Arguments:**

    - `folder`: where; if None, `eqxbert` in the user's folder for caches (`XDG_CACHE_HOME`, or
        `~/.cache`), with a folder in it for each kind of processor, since programs for one may not
        run on another.

    **Returns:** the folder, or None if the cache is turned off, or the usual folder cannot be made.

    **Raises:** `OSError` if a `folder` that was given cannot be made.
    """
    settings: Any = jax.config  # whose type does not list what there is
    if not settings.jax_enable_compilation_cache:
        return None
    path = Path(folder or settings.jax_compilation_cache_dir or _usual_folder())
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        if folder is not None:
            raise
        return None
    settings.update("jax_compilation_cache_dir", str(path))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        settings.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return path


def _usual_folder() -> Path:
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "eqxbert" / "programs" / _processor()


def _processor() -> str:
    """A short name for what the processor can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        abilities = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):  # not Linux
        abilities = platform.processor()
    digest = hashlib.sha256(abilities.encode()).hexdigest()[:8]
    return f"{platform.machine()}-{digest}"
