"""Pretraining from files to a folder, which is what the command line does."""

import logging
import shutil
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import jax
from jaxtyping import DTypeLike

from ..config import BertConfig
from ..convert import staged_folder
from ..convert.pretrained import write_model
from ..models import BertForMaskedLM
from ..training import adamw, fit
from ..training.batches import check_count
from .pretraining import MaskedTextBatches, masked_text_metrics, train_tokenizer
from .run_folder import (
    METRICS,
    begin_run,
    check_finite,
    fingerprint,
    has_checkpoints,
    open_run,
    read_metrics,
    run_path,
    shows_progress,
    write_json,
)
from .tokenizer import Tokenizer

logger = logging.getLogger("eqxbert")

_SAVE_EVERY = 500  # steps
_EVALUATE_EVERY = 2500


def pretrain(
    train: Sequence[str | PathLike[str]],
    *,
    out: str | PathLike[str],
    dev: str | PathLike[str] | None = None,
    model: str | PathLike[str] | None = None,
    vocab_size: int = 30522,
    lowercase: bool = True,
    hidden_size: int = 256,
    layers: int = 4,
    heads: int = 4,
    steps: int,
    batch_size: int = 32,
    seq: int = 128,
    rate: float | int = 0.15,
    whole_words: bool = True,
    learning_rate: float = 1e-3,
    warmup: float | int = 0.05,
    weight_decay: float = 0.01,
    accumulate: int | None = None,
    dtype: DTypeLike | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Pretrains a BERT on bare text by masked words, and writes it to a folder with its tokenizer,
    a `metrics.json`, and its settings in a `training.json`: `from_pretrained` and transformers load
    it. A vocabulary is made for the text, unless a model with its own goes on.

    Called again after it was stopped, it goes on from the last checkpoint; there is one for every
    500 steps. They are removed in the end.

    **Arguments:**

    - `train`: UTF-8 files of texts, with empty lines between them.
    - `out`: the folder.
    - `dev`: texts on which the model is measured every 2,500 steps; the best one is written. The
        last one, if that is None.
    - `model`: the folder, or the name on the Hugging Face hub, of a BERT with its tokenizer to go
        on with; None for a new one.
    - `vocab_size`, `lowercase`: of the new vocabulary; see `train_tokenizer`.
    - `hidden_size`, `layers`, `heads`: of a new model, whose feed-forward layers are four times as
        wide.
    - `steps`, `batch_size`: how many updates, on how many rows each.
    - `seq`: the number of tokens in a row. A new model has as many positions.
    - `rate`, `whole_words`: which tokens are masked; see `MaskedTextBatches`.
    - `learning_rate`, `warmup`, `weight_decay`: as in `adamw`. It falls linearly.
    - `accumulate`, `dtype`: as in `make_train_step`. The former must divide `batch_size`.
    - `seed`: another one for another order, other masks, and another new model.
    - `progress`: whether to show a progress bar; if None, in a terminal.

    **Returns:** the metrics on `dev` of the model that is written, and its `step`.

    **Raises:** `ValueError` for files that hold no text, values out of range, and a folder that
    holds something else; `FileNotFoundError`; `FloatingPointError` if the model, or its loss, is
    not finite in the end, or no step had finite gradients.
    """
    if accumulate is not None:
        check_count("accumulate", accumulate, 1)
    if accumulate is not None and batch_size % accumulate:
        raise ValueError(
            f"A batch of {batch_size} rows cannot be computed in {accumulate} equal parts. Choose "
            "a batch_size that is a multiple of accumulate."
        )
    settings = {
        "task": "masked-words",
        "train": [fingerprint(path) for path in train],
        "dev": None if dev is None else fingerprint(dev),
        "model": None if model is None else str(model),
        "vocab_size": vocab_size,
        "lowercase": lowercase,
        "hidden_size": hidden_size,
        "layers": layers,
        "heads": heads,
        "steps": steps,
        "batch_size": batch_size,
        "seq": seq,
        "rate": rate,
        "whole_words": whole_words,
        "learning_rate": learning_rate,
        "warmup": warmup,
        "weight_decay": weight_decay,
        "accumulate": accumulate,
        "dtype": None if dtype is None else jax.numpy.dtype(dtype).name,
        "seed": seed,
    }
    folder = run_path(out)
    if (known := open_run(folder, settings)) is not None:
        logger.warning("%s holds the result of this very run; there is nothing to do.", folder)
        return known

    texts = [text for path in train for text in read_texts(path)]
    dev_texts = None if dev is None else read_texts(dev)
    model_key, key = jax.random.split(jax.random.key(seed))
    if model is None:
        # Made again, it would be another one, for which the checkpoints are not.
        tokenizer = (
            Tokenizer.from_pretrained(folder)
            if has_checkpoints(folder)
            else train_tokenizer(texts, vocab_size=vocab_size, lowercase=lowercase, max_length=seq)
        )
        config = BertConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * hidden_size,
            max_position_embeddings=seq,
        )
        untrained = BertForMaskedLM(config, key=model_key)
    else:
        tokenizer = Tokenizer.from_pretrained(model)
        untrained = BertForMaskedLM.from_pretrained(model, key=model_key)
        if seq > untrained.config.max_position_embeddings:
            raise ValueError(
                f"seq is {seq}, but {model} has {untrained.config.max_position_embeddings} "
                "positions (max_position_embeddings)."
            )

    def batches_of(found: Sequence[str]) -> MaskedTextBatches:
        return MaskedTextBatches(
            tokenizer,
            found,
            seq=seq,
            batch_size=batch_size,
            seed=seed,
            rate=rate,
            whole_words=whole_words,
        )

    batches = batches_of(texts)
    evaluate = None if dev_texts is None else masked_text_metrics(batches_of(dev_texts))
    optimizer = adamw(learning_rate, total_steps=steps, warmup=warmup, weight_decay=weight_decay)
    checkpoints = begin_run(folder, settings)
    if model is None:
        with staged_folder(folder) as staging:
            tokenizer.write(staging)
    logger.info("%d texts, %d tokens", len(texts), batches.tokens)
    result = fit(
        untrained,
        batches,
        optimizer,
        key=key,
        steps=steps,
        evaluate=evaluate,
        evaluate_every=_EVALUATE_EVERY,
        folder=checkpoints,
        save_every=_SAVE_EVERY,
        accumulate=accumulate,
        dtype=dtype,
        progress=shows_progress(progress),
    )
    metrics: dict[str, Any] = {"step": steps, "loss": result.history[-1]["loss"]}
    if result.best is not None:
        metrics = result.best | {"evaluations": result.evaluations}
    check_finite(result.model, metrics, folder)
    with staged_folder(folder) as staging:
        write_model(result.model, staging)
        tokenizer.write(staging)
        write_json(staging / METRICS, metrics)
    shutil.rmtree(checkpoints)
    return read_metrics(folder)


def read_texts(path: str | PathLike[str]) -> list[str]:
    """The texts in a UTF-8 file, which are parted by empty lines.

    **Raises:** `ValueError` if there are none, or it is not UTF-8; `FileNotFoundError`.
    """
    try:
        content = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    lines: list[str] = []
    texts = []
    for line in [*content.split("\n"), ""]:
        if line.strip():
            lines.append(line.strip())
        elif lines:
            texts.append("\n".join(lines))
            lines = []
    if not texts:
        raise ValueError(f"{path} has no text.")
    return texts
