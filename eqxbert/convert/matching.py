"""Which array of a checkpoint fills which array of a model."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax

from .containers import LazyTensor
from .dtypes import quantised
from .names import (
    BASE,
    DECODER_WEIGHT,
    LM_BIAS,
    canonical_names,
    is_ignored,
    is_transposed,
    path_to_name,
    without_bert,
)
from .report import CheckpointError, LoadReport
from .ties import Found, settle_ties


def named_arrays(module: eqx.Module) -> dict[str, Any]:
    """The arrays of a module, in the order of its leaves, under their PyTorch names.

    **Raises:** `ValueError` if there is one that has none, as of adapters.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(module)
    arrays = {}
    for path, leaf in leaves:
        text = jax.tree_util.keystr(path, simple=True, separator=".")
        try:
            arrays[path_to_name(text)] = leaf
        except KeyError:
            raise ValueError(
                f"{text} has no name in a checkpoint of {type(module).__name__}. If the model has "
                "adapters (LoRA), there are merge_lora and remove_lora, and save_lora for these."
            ) from None
    return arrays


def without_prefix(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays by their canonical names."""
    return {without_bert(name): array for name, array in arrays.items()}


class Match(NamedTuple):
    """What of a checkpoint fills what of a model.

    - `filling`: canonical name -> the array that fills the model's array of that name.
    - `repeats`: pairs of an array and the canonical name of another that ought to be equal to it.
    - `report`: the fate of each name, as far as it is known before anything is read.
    """

    filling: Mapping[str, Found]
    repeats: tuple[tuple[Found, str], ...]
    report: LoadReport


def match(
    skeleton: eqx.Module,
    state: Mapping[str, LazyTensor],
    *,
    may_initialize: bool = False,
    ignore_mismatched_sizes: bool = False,
    ignore_unexpected: bool = False,
) -> Match:
    """What would fill the arrays of `skeleton`. Nothing is read.

    **Raises:** `CheckpointError` listing every array that is missing, has the wrong shape or has no
    place.
    """
    wanted = without_prefix(named_arrays(skeleton))
    # In an encoder-decoder, the decoder is a language model, and its names tell so.
    part = "decoder." if f"decoder.{LM_BIAS}" in wanted else ""
    found, repeats = by_canonical_name(state, whole=bool(part)), ()
    if part + LM_BIAS in wanted:
        found, repeats = settle_ties(found, part, tied=part + DECODER_WEIGHT not in wanted)
    mismatched = {
        name: (found[name].tensor.shape, leaf.shape)
        for name, leaf in wanted.items()
        if name in found and found[name].tensor.shape != leaf.shape
    }
    filling = {n: found[n] for n in wanted if n in found and n not in mismatched}
    others = {name: entry for name, entry in found.items() if name not in wanted}
    report = LoadReport(
        loaded={entry.name: name for name, entry in filling.items()},
        initialized=tuple(name for name in wanted if name not in filling),
        mismatched=mismatched,
        tied={entry.name: name for entry, name in repeats},
        unexpected=tuple(e.name for name, e in others.items() if not is_ignored(name)),
        ignored=tuple(e.name for name, e in others.items() if is_ignored(name)),
    )
    _raise_problems(
        report,
        {name: entry.tensor for name, entry in filling.items()},
        [] if ignore_unexpected else _homeless(others),
        may_initialize=may_initialize,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
    )
    return Match(filling, repeats, report)


def by_canonical_name(state: Mapping[str, LazyTensor], *, whole: bool = False) -> dict[str, Found]:
    """The arrays of a checkpoint under their canonical names; `whole` as in `canonical_names`.

    **Raises:** `CheckpointError` if two of its names stand for the same array.
    """
    found = {}
    for name, canonical in canonical_names(state, whole=whole).items():
        if canonical in found:
            raise CheckpointError(
                f"Both {found[canonical].name!r} and {name!r} in the checkpoint stand for "
                f"{canonical!r}. Remove one of them."
            )
        tensor = state[name].transposed() if is_transposed(name) else state[name]
        found[canonical] = Found(name, tensor)
    return found


def _homeless(others: Mapping[str, Found]) -> list[str]:
    """The names in the checkpoint that belong to the base model but have no place in this one. A
    head that the model lacks changes nothing in what it computes; an array of the base does:
    without it, the model would not be the one that was saved.
    """
    return [
        entry.name
        for name, entry in others.items()
        if not is_ignored(name)
        and ((name.startswith(BASE) and not name.startswith("pooler.")) or ".lora_" in name)
    ]


def _raise_problems(
    report: LoadReport,
    tensors: Mapping[str, LazyTensor],
    homeless: list[str],
    *,
    may_initialize: bool,
    ignore_mismatched_sizes: bool,
) -> None:
    """Raises one error with every reason why the checkpoint must not be used as it is."""
    problems = []
    missing = [name for name in report.initialized if name not in report.mismatched]
    if missing and (not may_initialize or not report.loaded):
        problems.append(
            _list("missing from the checkpoint", missing) + _why_missing(report, missing)
        )
    if report.mismatched and not ignore_mismatched_sizes:
        rows = [
            f"{name}: {found} in the checkpoint, {expected} in the model"
            for name, (found, expected) in report.mismatched.items()
        ]
        problems.append(_list("of another shape", rows) + _why_mismatched(report))
    problems += quantised(tensors)
    if homeless:
        problems.append(
            _list("in the checkpoint without a place in the model", homeless)
            + "The configuration may be another model's (num_hidden_layers, "
            "position_embedding_type, ...). To leave them out on purpose, pass "
            "ignore_unexpected=True."
        )
    if problems:
        raise CheckpointError("The checkpoint does not fit the model.\n\n" + "\n\n".join(problems))


def _list(title: str, rows: list[str]) -> str:
    return f"{len(rows)} {title}:\n  " + "\n  ".join(rows) + "\n"


def _why_missing(report: LoadReport, missing: list[str]) -> str:
    if all(name.startswith("pooler.") for name in missing):
        return (
            "The checkpoint was saved without a pooler. Pass key=jax.random.key(0) for an "
            "untrained one; a BertModel can do without, too (add_pooling_layer=False)."
        )
    if missing == [DECODER_WEIGHT]:
        return (
            "In this checkpoint the decoder is tied to the word embeddings. Leave "
            "tie_word_embeddings True; or, for a new decoder, pass key=jax.random.key(0)."
        )
    if not report.loaded:
        return (
            "None of its names belongs to a BERT. It has "
            + (", ".join(report.unexpected[:5]) or "none at all")
            + (", ..." if len(report.unexpected) > 5 else ".")
        )
    return "To draw them anew (a new head, say), pass key=jax.random.key(0)."


def _why_mismatched(report: LoadReport) -> str:
    words = report.mismatched.get("embeddings.word_embeddings.weight")
    if words is not None and words[0][1:] == words[1][1:]:
        return (
            f"The checkpoint's vocabulary has {words[0][0]} rows, the configuration's vocab_size "
            f"is {words[1][0]}. If the table was padded, pass vocab_size={words[0][0]}."
        )
    return (
        "The configuration may be another model's. To draw them anew, pass "
        "ignore_mismatched_sizes=True and key=jax.random.key(0)."
    )
