"""The one table of names: where each part of an eqxbert model stands in a Hugging Face checkpoint.

A *path* is a place in the tree (`encoder.layers.3.attention.query.weight`), a *name* is a key of a
PyTorch checkpoint (`encoder.layer.3.attention.self.query.weight`). Both are used here without the
`bert.` that precedes them in models with a head; `path_to_name` puts it back.
"""

import re
from collections.abc import Iterable

# (path of a module or array, its name). What follows, such as `.weight`, is the same on both sides.
_TABLE = (
    ("embeddings.word", "embeddings.word_embeddings"),
    ("embeddings.position", "embeddings.position_embeddings"),
    ("embeddings.token_type", "embeddings.token_type_embeddings"),
    ("embeddings.norm", "embeddings.LayerNorm"),
    ("encoder.layers.{i}.attention.query", "encoder.layer.{i}.attention.self.query"),
    ("encoder.layers.{i}.attention.key", "encoder.layer.{i}.attention.self.key"),
    ("encoder.layers.{i}.attention.value", "encoder.layer.{i}.attention.self.value"),
    (
        "encoder.layers.{i}.attention.distance",
        "encoder.layer.{i}.attention.self.distance_embedding",
    ),
    ("encoder.layers.{i}.attention.output", "encoder.layer.{i}.attention.output.dense"),
    ("encoder.layers.{i}.attention_norm", "encoder.layer.{i}.attention.output.LayerNorm"),
    ("encoder.layers.{i}.cross_attention.query", "encoder.layer.{i}.crossattention.self.query"),
    ("encoder.layers.{i}.cross_attention.key", "encoder.layer.{i}.crossattention.self.key"),
    ("encoder.layers.{i}.cross_attention.value", "encoder.layer.{i}.crossattention.self.value"),
    (
        "encoder.layers.{i}.cross_attention.distance",
        "encoder.layer.{i}.crossattention.self.distance_embedding",
    ),
    ("encoder.layers.{i}.cross_attention.output", "encoder.layer.{i}.crossattention.output.dense"),
    (
        "encoder.layers.{i}.cross_attention_norm",
        "encoder.layer.{i}.crossattention.output.LayerNorm",
    ),
    ("encoder.layers.{i}.feed_forward.intermediate", "encoder.layer.{i}.intermediate.dense"),
    (
        "encoder.layers.{i}.feed_forward.activation.parameters",
        "encoder.layer.{i}.intermediate.intermediate_act_fn",
    ),
    ("encoder.layers.{i}.feed_forward.output", "encoder.layer.{i}.output.dense"),
    ("encoder.layers.{i}.feed_forward_norm", "encoder.layer.{i}.output.LayerNorm"),
    ("pooler.dense", "pooler.dense"),
    ("lm_head.dense", "cls.predictions.transform.dense"),
    ("lm_head.activation.parameters", "cls.predictions.transform.transform_act_fn"),
    ("lm_head.norm", "cls.predictions.transform.LayerNorm"),
    ("lm_head.decoder", "cls.predictions.decoder"),
    ("lm_head.bias", "cls.predictions.bias"),
    ("nsp_head", "cls.seq_relationship"),
    ("classifier", "classifier"),
    ("qa_outputs", "qa_outputs"),
    ("enc_to_dec_proj", "enc_to_dec_proj"),
)

# The Dense module of sentence-transformers, which has a file of its own.
_DENSE_TABLE = (("linear", "linear"), ("residual", "residual"))

# What the names of the base model begin with; those of heads begin otherwise.
BASE = ("embeddings.", "encoder.", "pooler.")

# Before every name, put there by whatever wrapped the model when it was saved.
_WRAPPERS = (
    "module.",
    "_orig_mod.",
    "base_model.model.",
    "model.",
    "0.auto_model.",
    "0.model.",
    "state_dict.",
    "params.",
)

# Buffers and leftovers of training, which hold nothing of the model.
_IGNORED = re.compile(
    r"((en|de)coder\.)?embeddings\.(position_ids|token_type_ids)"
    r"|.*_act_fn\.(beta|eps)"  # constants of xIELU
    r"|(.*[./])?(adam_m|adam_v|global_step|beta1_power|beta2_power)"
    r"|AdamWeightDecayOptimizer.*"
)

# Names of arrays that language models tie to one another.
WORDS = "embeddings.word_embeddings.weight"
LM_BIAS = "cls.predictions.bias"
DECODER_WEIGHT = "cls.predictions.decoder.weight"
DECODER_BIAS = "cls.predictions.decoder.bias"

# What other programs and earlier versions call things: (a pattern, what takes its place).
_SPELLINGS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # transformers' models in TensorFlow.
        (r":0$", ""),
        (r"(?<=encoder\.)layer_\._(?=\d)", "layer."),
        (r"^(mlm|nsp)___cls\.", "cls."),
        # Flax's and TensorFlow's parameters of linear maps (stored transposed: `is_transposed`),
        # and of tables.
        (r"\.kernel$", ".weight"),
        (r"(?<=_embeddings)\.embeddings?$", ".weight"),
        (r"(?<=_embeddings)$", ".weight"),
        # Theirs of a LayerNorm; nothing else is renamed by them.
        (r"(?<=LayerNorm)\.(gamma|scale)$", ".weight"),
        (r"(?<=LayerNorm)\.beta$", ".bias"),
        # Google's code in TensorFlow.
        (r"(?<=encoder\.)layer_(?=\d)", "layer."),
        (r"^cls\.predictions\.output_bias$", LM_BIAS),
        (r"^cls\.squad\.output_(?=weights$|bias$)", "qa_outputs."),
        (r"^cls\.seq_relationship\.output_(?=weights$|bias$)", "cls.seq_relationship."),
        (r"^output_(?=weights$|bias$)", "classifier."),
        (r"(?<=\.)weights$", "weight"),
        # NVIDIA's fused linear maps.
        (r"(?<=\.)dense_act(?=\.)", "dense"),
        # PEFT keeps the original weight of an adapted map one level deeper.
        (r"\.base_layer(?=\.)", ""),
    )
)


def _compile(patterns: Iterable[tuple[str, str]]) -> tuple[tuple[re.Pattern[str], str], ...]:
    """Each pattern as a regular expression, with the template that replaces what it matches."""
    compiled = []
    for pattern, replacement in patterns:
        expression = re.escape(pattern).replace(r"\{i\}", r"(\d+)")
        compiled.append((re.compile(rf"{expression}(?=\.|$)"), replacement.replace("{i}", r"\1")))
    return tuple(compiled)


_TO_NAME = _compile(_TABLE + _DENSE_TABLE)
_TO_PATH = _compile((name, path) for path, name in _TABLE)


def path_to_name(path: str) -> str:
    """The PyTorch name of the array at `path`, with what precedes it in models with a head
    (`bert.`) and in encoder-decoders (`encoder.`, `decoder.`).

    **Raises:** `KeyError` if the table has no row for it.
    """
    match = _PARTS.match(path)
    assert match is not None
    return match.group() + _apply(_TO_NAME, path[match.end() :])


# A BERT has an `encoder` as well, in which there are layers; an encoder-decoder's is a whole BERT.
_PARTS = re.compile(r"(encoder\.(?=embeddings\.|encoder\.|pooler\.)|decoder\.)?(bert\.)?")


def name_to_path(name: str) -> str:
    """The path of what a checkpoint calls `name`, a canonical name (see `canonical_names`).

    **Raises:** `KeyError` if the table has no row for it.
    """
    match = _PARTS.match(name)
    assert match is not None
    return match.group() + _apply(_TO_PATH, name[match.end() :])


def without_bert(name: str) -> str:
    """A PyTorch name without the `bert.` of models with a head: a canonical one."""
    return _BERT.sub(r"\1", name)


_BERT = re.compile(r"^(decoder\.)?bert\.")


def _apply(table: tuple[tuple[re.Pattern[str], str], ...], text: str) -> str:
    for expression, template in table:
        match = expression.match(text)
        if match and text.count(".", match.end()) <= 1:  # a module's own array, or an array itself
            return match.expand(template) + text[match.end() :]
    raise KeyError(text)


def architecture(class_name: str) -> str:
    """What transformers calls a class of ours."""
    return {"BertForCausalLM": "BertLMHeadModel"}.get(class_name, class_name)


def has_path(name: str) -> bool:
    """Whether the table has a row for a canonical name."""
    try:
        name_to_path(name)
    except KeyError:
        return False
    return True


def is_ignored(name: str) -> bool:
    """Whether a canonical name stands for nothing that a model could hold."""
    return _IGNORED.fullmatch(name) is not None


def canonical_names(names: Iterable[str], *, whole: bool = False) -> dict[str, str]:
    """Maps each name of a checkpoint to its canonical form: as transformers' PyTorch models have it
    today, without the prefixes that wrappers add, and without `bert.`.

    From an encoder-decoder's checkpoint the encoder is taken, unless it is wanted as a `whole`.
    """
    names = list(names)
    canonical = {name: _strip_wrappers(name.replace("/", ".")) for name in names}
    if not whole and any(name.startswith("encoder.embeddings.") for name in canonical.values()):
        canonical = {key: name.removeprefix("encoder.") for key, name in canonical.items()}
    return {key: _respell(without_bert(name)) for key, name in canonical.items()}


def is_transposed(name: str) -> bool:
    """Whether a checkpoint's array of that name is a linear map stored (in, out), as Flax and
    TensorFlow do, not (out, in).
    """
    return name.removesuffix(":0").endswith((".kernel", "/kernel"))


def _strip_wrappers(name: str) -> str:
    while prefix := next((prefix for prefix in _WRAPPERS if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name


def _respell(name: str) -> str:
    for expression, replacement in _SPELLINGS:
        name = expression.sub(replacement, name)
    return name
