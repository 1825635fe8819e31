"""The training loop: what it calls, when it ends, and that nothing is lost when it is stopped."""

import contextlib
import importlib
import itertools
import json
import logging
import multiprocessing
import random
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import run_python, tiny_config
from training import killed_run

import eqxbert
from eqxbert.training import Checkpoints, TrainState, adamw, fit

pytest.importorskip("orbax.checkpoint", reason="needs the extra `train`")

STEPS = 24


def batch(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    ids = rng.integers(0, 33, (4, 6))
    return {"input_ids": ids, "labels": np.where(rng.random(ids.shape) < 0.3, ids, -100)}


@pytest.fixture(scope="module")
def model() -> eqxbert.BertForMaskedLM:
    return eqxbert.BertForMaskedLM(tiny_config(), key=jax.random.key(0))


OPTIMIZER = adamw(1e-2, total_steps=STEPS, warmup=4)


def run(model: Any, train: Any = batch, **options: Any) -> eqxbert.training.FitResult:
    options = {"steps": STEPS, "key": jax.random.key(1), "progress": False} | options
    return fit(model, train, OPTIMIZER, **options)


def assert_equal(a: Any, b: Any) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.array_equal(x, y)


class StopError(Exception):
    pass


def stop_at(step: int) -> Callable[[TrainState, dict], None]:
    def callback(state: TrainState, record: dict) -> None:
        if record["step"] == step:
            raise StopError

    return callback


def test_it_learns_and_tells_of_it(model):
    same = batch(0)
    before = [np.asarray(x) for x in jax.tree.leaves(model)]
    out = run(model, lambda step: same, log_every=5)
    assert [record["step"] for record in out.history] == [5, 10, 15, 20, 24]
    losses = [record["loss"] for record in out.history]
    assert losses[-1] < 0.8 * losses[0]
    assert {"loss", "grad_norm", "learning_rate", "tokens", "skipped"} <= {*out.history[0]}
    assert out.state.step == STEPS
    assert out.evaluations == []
    assert_equal(out.model, out.state.model)
    assert_equal(model, before)  # which stays as it was


@pytest.mark.parametrize(("stopped_at", "as_list"), [(3, False), (7, True), (23, False)])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, model, stopped_at, as_list):
    train = [batch(i) for i in range(5)] if as_list else batch
    options = {"evaluate": [batch(100), batch(101)], "evaluate_every": 6, "log_every": 1}
    whole = run(model, train, **options)
    options |= {"folder": tmp_path / "run", "save_every": 4}
    with pytest.raises(StopError):
        run(model, train, callbacks=[stop_at(stopped_at)], **options)
    resumed = run(model, train, **options)
    assert resumed.history == whole.history
    assert resumed.evaluations == whole.evaluations
    assert_equal(resumed.state, whole.state)
    assert_equal(resumed.model, whole.model)

    again = run(model, train, **options)  # there is nothing left to do
    assert again.history == whole.history
    assert_equal(again.model, whole.model)


@pytest.mark.skipif(sys.platform == "win32", reason="has no forkserver")
def test_killed_twenty_times(tmp_path, monkeypatch):
    """At any moment: while it reads the last checkpoint and compiles, while it trains and writes.
    All checkpoints that are there then can be read, and what comes out is what comes out of a run
    that goes through.
    """
    monkeypatch.setenv("EQXBERT_TYPECHECK", "")
    # Of their own, since one that is killed may leave half a program there.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "programs"))
    context = multiprocessing.get_context("forkserver")  # each begins with everything imported
    context.set_forkserver_preload([killed_run.__name__])

    @contextlib.contextmanager
    def running(name: str) -> Iterator[tuple[ForkServerProcess, Iterator[str | int]]]:
        """The process, and what it tells until it ends."""
        events, end = context.Pipe(duplex=False)
        paths = tmp_path / name, tmp_path / f"{name}.npz"
        process = context.Process(target=killed_run.train, args=(*paths, end))
        process.start()
        end.close()
        with events:
            yield process, received(events)
        process.join()

    def finish(name: str) -> tuple[dict[str, np.ndarray], float]:
        """**Returns:** what came out of it, and the mean time of a step."""
        with running(name) as (process, events):
            times = [time.perf_counter() for _ in events]
        assert process.exitcode == 0
        with np.load(tmp_path / f"{name}.npz") as file:
            return dict(file), (times[-1] - times[1]) / len(times)

    def kill(after: str, seconds: float) -> tuple[list[int], float]:
        """Kills a run some seconds after it began or made its first step.

        **Returns:** the steps that it made, and how long it took to come to the first.
        """
        told, times = [], []
        with running("killed") as (process, events):
            killer = threading.Timer(seconds, process.kill)
            for event in events:
                told.append(event)
                times.append(time.perf_counter())
                if len(told) == (1 if after == "began" else 2):
                    killer.start()
        assert process.exitcode == -signal.SIGKILL, "it ended before it was killed"
        return told[1:], times[1] - times[0] if len(times) > 1 else 0.0

    whole, step = finish("whole")
    rng, reached = random.Random(0), []
    restoring = 0.0  # how long that takes
    for after in ["stepped", "began"] * 10:
        longest = {"began": restoring, "stepped": 10 * step}[after]
        steps, seconds = kill(after, rng.uniform(0, longest))
        reached.append(steps)
        if after == "stepped":
            restoring = seconds
        check_all_checkpoints(tmp_path / "killed", whole["losses"])
    starts = {steps[0] for steps in reached if steps}
    assert len(starts) > 3, reached  # it goes on from where it was
    assert sum(not steps for steps in reached) > 5, reached  # others came to no step

    found, _ = finish("killed")
    assert {*found} == {*whole}
    for name in found:
        assert np.array_equal(found[name], whole[name])


def received(connection: Connection) -> Iterator[Any]:
    """What comes, until the other end is closed."""
    with contextlib.suppress(EOFError):
        while True:
            yield connection.recv()


def check_all_checkpoints(folder: Path, losses: np.ndarray) -> None:
    """That those in a folder can be read, and are of a run with these losses."""
    if not folder.exists():
        return
    # A copy: opening a folder clears it of what is half-written, and the next run is to do that.
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    like = TrainState.create(killed_run.new_model(), killed_run.OPTIMIZER, key=jax.random.key(1))
    with Checkpoints(copy) as checkpoints:
        for step in checkpoints.steps:
            found = checkpoints.restore(like, step)
            assert found.state.step == step
            assert [r["loss"] for r in found.notes["history"]] == losses[:step].tolist()
    shutil.rmtree(copy)


def test_the_best_model_and_the_last_ones_are_kept(tmp_path, model):
    """The third evaluation of six is the best."""
    scores = [3.0, 2.0, 1.0, 2.0, 1.0, 4.0]
    seen = []

    def evaluate(model: Any) -> dict[str, float]:
        seen.append(jax.tree.map(jnp.copy, model))
        return {"error": scores[len(seen) - 1]}

    options = {"evaluate": evaluate, "evaluate_every": 4, "best_metric": "error"}
    out = run(model, folder=tmp_path / "run", keep=2, **options)
    assert [record["error"] for record in out.evaluations] == scores
    assert_equal(out.model, seen[2])
    assert_equal(out.state.model, seen[5])
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.steps == [12, 20, 24]

    seen.clear()
    assert_equal(run(model, **options).model, seen[2])  # without a folder as well
    seen.clear()
    assert_equal(run(model, best_is_highest=True, **options).model, seen[5])


@pytest.mark.parametrize("failing", [12, STEPS])
def test_an_evaluation_that_fails_loses_nothing(tmp_path, model, failing):
    done, seen = [], []
    is_broken = True

    def evaluate(model: Any) -> dict[str, float]:
        if is_broken and len(done) == failing / 4 - 1:
            raise StopError
        done.append(float(jnp.sum(model.bert.embeddings.word.weight)))
        return {"loss": done[-1]}

    def note(state: TrainState, record: dict) -> None:
        seen.append((record["step"], set(record)))

    options = {"evaluate": evaluate, "evaluate_every": 4, "log_every": 1, "callbacks": [note]}
    for _ in range(2):  # it may fail again
        with pytest.raises(StopError):
            run(model, folder=tmp_path, **options)
        with Checkpoints(tmp_path) as checkpoints:
            assert checkpoints.steps[-1] == failing
    is_broken = False
    seen.clear()
    resumed = run(model, folder=tmp_path, **options)
    assert seen[0] == (failing, {"step", "loss"})
    whole = run(model, **options)
    assert (resumed.evaluations, resumed.history) == (whole.evaluations, whole.history)
    assert_equal(resumed.state, whole.state)
    assert_equal(resumed.model, whole.model)


def test_it_ends_when_evaluations_get_no_better(tmp_path, model):
    scores = iter([3.0, 2.0, 2.5, float("nan"), 1.0, 0.0])
    options = {"evaluate_every": 4, "patience": 2, "folder": tmp_path / "run"}
    out = run(model, evaluate=lambda model: {"loss": next(scores)}, **options)
    assert out.state.step == 16
    again = run(model, evaluate=lambda model: {"loss": next(scores)}, **options)
    assert again.state.step == 16


def test_a_callback_may_end_it(model):
    def callback(state: TrainState, record: dict) -> None:
        assert state.step == record["step"]
        if record["step"] == 10:
            raise StopIteration

    assert run(model, log_every=5, callbacks=[callback]).state.step == 10


def test_the_mean_loss_of_an_evaluation_is_over_all_labels(model):
    batches = [batch(i) for i in range(3)]
    batches[1]["labels"][:] = -100
    batches[2]["labels"][:, 1:] = -100
    out = run(model, steps=1, evaluate=batches, dtype=None)
    joint = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
    expected = float(out.state.model(**joint).loss)
    assert abs(out.evaluations[0]["loss"] - expected) < 1e-6 * expected


def test_epochs(model):
    batches = [batch(i) for i in range(5)]
    out = run(model, batches, steps=None, epochs=3, evaluate=batches, log_every=1)
    assert out.state.step == 15
    assert [record["step"] for record in out.evaluations] == [5, 10, 15]
    by_step = run(model, lambda step: batches[step % 5], steps=15, log_every=1)
    assert out.history == by_step.history


def test_gradients_that_are_never_finite_end_it(model):
    nan = {
        "inputs_embeds": np.full((2, 3, 12), np.nan, np.float32),
        "labels": np.zeros((2, 3), int),
    }
    with pytest.raises(FloatingPointError, match="last 100 steps were not finite"):
        run(model, lambda step: nan, steps=200)


def with_wrong_labels(step: int) -> dict[str, np.ndarray]:
    return batch(step) | {"labels": np.full((4, 6), 33)}  # of 33 words


@pytest.mark.parametrize("wrong", ["labels", "weights"])
def test_a_short_run_that_changed_nothing_is_an_error(tmp_path, model, wrong):
    train = with_wrong_labels
    if wrong == "weights":
        train, model = batch, jax.tree.map(lambda x: x * jnp.nan, model)
    with pytest.raises(FloatingPointError, match="none of the 5 steps were finite"):
        run(model, train, steps=5, folder=tmp_path / "run", save_every=2)
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert 5 not in checkpoints.steps  # which would be the end of it


def test_steps_that_changed_nothing_are_told_of(model, caplog):
    def train(step: int) -> dict[str, np.ndarray]:
        return (with_wrong_labels if step in (1, 3) else batch)(step)

    def warnings_of(train: Any) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "eqxbert"):
            run(model, train, steps=5)
        return [record.getMessage() for record in caplog.records if record.name == "eqxbert"]

    (message,) = warnings_of(train)
    assert message.startswith("The gradients of 2 of 5 steps were not finite")
    assert warnings_of(batch) == []


def test_the_progress_bar(model, monkeypatch):
    """It has the loss, and the tokens per second since it was last shown: a tick of this clock."""
    shown = []

    class Bar:
        def __init__(self, *, total: int, initial: int, unit: str):
            self.n = initial
            shown.append((total, initial, unit))

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *exception: object) -> None:
            shown.append("closed")

        def set_postfix(self, **values: str) -> None:
            shown.append(values)

        def update(self, steps: int) -> None:
            self.n += steps
            shown.append(self.n)

    ticks = itertools.count(0.0, 0.5)
    module = importlib.import_module("eqxbert.training.progress")
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    out = run(model, steps=6, log_every=4, progress=True)
    losses = [f"{record['loss']:.4g}" for record in out.history]
    assert shown == [
        (6, 0, "step"),
        {"loss": losses[0], "tokens_per_s": "192"},  # 4 steps of 24 tokens
        4,
        {"loss": losses[1], "tokens_per_s": "96"},
        6,
        "closed",
    ]


def test_float16_scales_the_loss(model):
    out = run(model, dtype=jnp.float16, steps=3)
    assert out.state.loss_scale is not None
    assert out.state.skipped < 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 1}, "either steps or epochs"),
        ({"steps": None}, "either steps or epochs"),
        ({"steps": None, "epochs": 2}, "number is known"),
        ({"steps": 0}, "at least one step"),
        ({"log_every": 0}, "log_every must be at least 1, got 0"),
        ({"save_every": -1}, "save_every must be at least 1"),
        ({"patience": 2}, "patience needs evaluate"),
        ({"evaluate": []}, "evaluate is empty"),
        ({"evaluate": (batch(i) for i in range(2))}, "evaluate is a generator, .* only once"),
        ({"evaluate": lambda model: {"f1": 1.0}}, "best_metric is 'loss', but .* f1"),
    ],
)
def test_wrong_arguments(model, options, message):
    with pytest.raises(ValueError, match=message):
        run(model, **{"steps": 2} | options)


@pytest.mark.parametrize(
    ("train", "message"),
    [([], "train is empty"), ((batch(i) for i in range(3)), "train ended after 3 batches")],
)
def test_too_few_batches(model, train, message):
    with pytest.raises(ValueError, match=message):
        run(model, train)


def test_an_error_in_the_data_comes_up(model):
    def broken(step: int) -> dict[str, np.ndarray]:
        if step == 2:
            raise StopError("of the data")
        return batch(step)

    with pytest.raises(StopError, match="of the data"):
        run(model, broken)


def test_a_batch_is_a_dictionary(model):
    with pytest.raises(ValueError, match=r"A batch must be a dictionary .*; got tuple: \(array"):
        run(model, lambda step: (batch(step)["input_ids"], batch(step)["labels"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 2}, "num_attention_heads is 3 there and 2 here"),
        ({"hidden_act": "relu"}, "hidden_act is gelu there and relu here"),
        ({"id2label": {0: "no", 1: "yes"}}, "id2label is .*LABEL_0.* there and .*no.* here"),
    ],
)
def test_a_checkpoint_of_a_model_with_arrays_of_the_same_shapes(tmp_path, model, changes, message):
    state = TrainState.create(model, OPTIMIZER, key=jax.random.key(3))
    other = eqxbert.BertForMaskedLM(tiny_config(**changes), key=jax.random.key(0))
    like = TrainState.create(other, OPTIMIZER, key=jax.random.key(3))
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(state, {})
        checkpoints.wait()
        with pytest.raises(ValueError, match=f"another model or optimizer: {message}"):
            checkpoints.restore(like)


@pytest.mark.parametrize("damage", ["state/_METADATA", "notes/metadata", "a folder"])
def test_a_checkpoint_that_cannot_be_read(tmp_path, model, damage):
    folder = tmp_path / "run"
    state = TrainState.create(model, OPTIMIZER, key=jax.random.key(3))
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state, {})
    if damage == "a folder":
        (folder / "12").mkdir()
        (folder / "12" / "mine.txt").touch()
    else:
        shutil.copytree(folder / "0", folder / "12")
        path = folder / "12" / damage
        path.write_bytes(path.read_bytes()[:20])
    with Checkpoints(folder) as checkpoints:
        message = f"{re.escape(str(folder / '12'))} cannot be read: it is damaged.* Move it away"
        with pytest.raises(ValueError, match=message):
            checkpoints.restore(state)
        assert checkpoints.restore(state, 0) is not None  # of those before, nothing is lost


def test_a_checkpoint_from_before_configurations_were_kept(tmp_path, model):
    state = TrainState.create(model, OPTIMIZER, key=jax.random.key(3))
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(state, {"a": 1})
    path = tmp_path / "run" / "0" / "notes" / "metadata"
    values = json.loads(path.read_text())
    del values["config"]
    path.write_text(json.dumps(values))
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.restore(state).notes == {"a": 1}


def test_a_checkpoint_of_another_model(tmp_path, model):
    run(model, folder=tmp_path / "run", steps=2)
    other = eqxbert.BertForMaskedLM(tiny_config(intermediate_size=24), key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"another model or optimizer: .*intermediate.* float32\["):
        run(other, folder=tmp_path / "run", steps=2)
    with pytest.raises(ValueError, match="has checkpoints of steps"):
        run(model, folder=tmp_path / "run", steps=2, resume=False)


def test_a_checkpoint_of_a_later_step(tmp_path, model):
    run(model, folder=tmp_path / "run", steps=2)
    message = "last checkpoint in .*run is of step 2, and there are to be 1 steps"
    with pytest.raises(ValueError, match=message):
        run(model, folder=tmp_path / "run", steps=1)


def test_a_checkpoint_that_cannot_be_written(tmp_path, model):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises((OSError, ValueError)):
        run(model, folder=tmp_path / "file" / "run", steps=2)


def test_checkpoints_by_their_steps(tmp_path, model):
    state = TrainState.create(model, OPTIMIZER, key=jax.random.key(3))
    with Checkpoints(tmp_path / "run", keep=5) as checkpoints:
        assert checkpoints.restore(state) is None
        checkpoints.save(state, {"a": [1, None, "text"]}, best_step=0)
        checkpoints.wait()
        found = checkpoints.restore(state, 0)
        assert found.notes == {"a": [1, None, "text"]}
        assert_equal(found.state.model, model)
        assert jnp.array_equal(jax.random.key_data(found.state.key), jax.random.key_data(state.key))
        with pytest.raises(ValueError, match=r"no checkpoint of step 7, but of \[0\]"):
            checkpoints.restore(state, 7)


@pytest.mark.parametrize("keep", [0, -1])
def test_keep_must_be_positive(tmp_path, keep):
    with pytest.raises(ValueError, match="keep must be at least 1"):
        Checkpoints(tmp_path, keep=keep)


def test_there_are_no_half_written_checkpoints_to_read(tmp_path, model):
    """What a run left behind that was killed in the midst of writing is not taken for one."""
    run(model, folder=tmp_path / "run", steps=2)
    (tmp_path / "run" / "9.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.steps == [2]


def test_there_are_no_half_removed_checkpoints_to_read(tmp_path, model):
    """What a run left behind that was killed in the midst of removing is removed by the next."""
    run(model, folder=tmp_path / "run", steps=2)
    (tmp_path / "run" / "removed" / "1" / "state").mkdir(parents=True)
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.steps == [2]
    assert [path.name for path in (tmp_path / "run").iterdir() if path.is_dir()] == ["2"]


@pytest.mark.optimized  # so that both processes compute the same bits
@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_when_the_disk_is_full_nothing_is_lost(tmp_path):
    """The limit on the size of a file stands for it. The checkpoints before are whole, and with
    room again, training goes on from the last.
    """
    folder = tmp_path / "run"
    # In a process of its own, since orbax leaves threads and tasks behind after an error.
    code = ON_A_FULL_DISK.replace("FOLDER", repr(str(folder)))
    result = run_python(code, env={"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"})
    message = rf"could not be written to {re.escape(str(folder))}\. Those of the steps \["
    assert re.search(message, result.stdout), result.stderr
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps
        assert set(checkpoints.steps) <= {4, 8}
    model = eqxbert.BertForMaskedLM(tiny_config(), key=jax.random.key(0))
    options = {"save_every": 4, "log_every": 1}
    resumed, whole = run(model, folder=folder, **options), run(model, **options)
    assert resumed.history == whole.history
    assert_equal(resumed.model, whole.model)


ON_A_FULL_DISK = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import resource, signal
import jax
jax.config.update("jax_default_matmul_precision", "highest")
import eqxbert
from helpers import run_python, tiny_config
from training.test_fit import run

def fill(state, record):
    if record["step"] == 10:  # some time after the checkpoint of step 8 was begun
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model = eqxbert.BertForMaskedLM(tiny_config(), key=jax.random.key(0))
try:
    run(model, folder=FOLDER, save_every=4, log_every=1, callbacks=[fill])
except OSError as error:
    print(error)
"""


def test_a_run_on_several_devices_resumes():
    """The model on all of them, or on one that is not the first."""
    result = run_python(DEVICES, env={"XLA_FLAGS": "--xla_force_host_platform_device_count=2"})
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["ok", "ok"]


DEVICES = """
import tempfile
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import eqxbert
from eqxbert.training import adamw, fit

mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
config = eqxbert.BertConfig.tiny(num_hidden_layers=1)
plain = eqxbert.BertForSequenceClassification(config, key=jax.random.key(0))
batch = dict(input_ids=np.ones((4, 5), np.int32), labels=np.array([0, 1, 1, 0]))
for place in (NamedSharding(mesh, PartitionSpec()), jax.devices()[1]):
    model = jax.device_put(plain, place)

    def run(steps, folder):
        optimizer = adamw(1e-3, total_steps=4)
        options = dict(key=jax.random.key(1), folder=folder, log_every=1, progress=False)
        return fit(model, [batch] * 4, optimizer, steps=steps, **options)

    with tempfile.TemporaryDirectory() as folder:
        run(2, folder + "/one")
        resumed, whole = run(4, folder + "/one"), run(4, folder + "/two")
    assert resumed.history == whole.history
    for one, two in zip(jax.tree.leaves(resumed.model), jax.tree.leaves(whole.model), strict=True):
        assert np.array_equal(one, two) and one.sharding == two.sharding
    print("ok")
"""
