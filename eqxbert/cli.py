"""The command `eqxbert`: what one wants of a checkpoint without writing Python."""

import argparse
import io
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import pydoc
from .compilation_cache import enable_compilation_cache
from .config import BertConfig
from .convert import convert_checkpoint, inspect_checkpoint, staged_file
from .export import PLATFORMS, export_model
from .files import Location, read_json
from .models import BertForMaskedLM, BertModel, EncoderDecoderModel, model_class_of
from .text import SentenceEncoder, Tokenizer, fill_mask
from .text.pretrain import pretrain
from .text.tasks.finetune import TASKS, finetune

_DTYPES = ("float32", "bfloat16", "float16")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status: 0 if all went well, 1 if something was
    wrong with the input, 2 if the command itself was, 130 if it was interrupted.
    """
    logging.basicConfig(format="eqxbert: %(message)s")
    if isinstance(sys.stdout, io.TextIOWrapper):  # whatever the terminal's: texts come as UTF-8
        sys.stdout.reconfigure(encoding="utf-8")
    options = _parser().parse_args(arguments)
    enable_compilation_cache()
    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError, ImportError, FloatingPointError) as error:
        print(f"eqxbert: error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="eqxbert", description="BERT in JAX and Equinox.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    embed = commands.add_parser(
        "embed",
        help="texts to vectors",
        description="Turns texts into vectors: JSON lines on standard output, or a file. Write -- "
        "before texts that begin with -.",
    )
    _add_encoder_options(embed)
    _add_texts(embed)
    embed.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="write to this .npy or .jsonl file, not to standard output",
    )
    embed.add_argument("--normalize", action="store_true", help="scale vectors to length 1")
    embed.add_argument("--truncate-dim", type=int, metavar="N", help="keep N dimensions")
    embed.set_defaults(run=_embed)

    similarity = commands.add_parser(
        "similarity",
        help="how similar texts are to a query",
        description="Prints, for each text, how similar it is to the query, a tab, and the text.",
    )
    _add_encoder_options(similarity)
    similarity.add_argument("query", metavar="QUERY", help="the text to compare with")
    _add_texts(similarity)
    similarity.set_defaults(run=_similarity)

    inspect = commands.add_parser(
        "inspect",
        help="what is in a checkpoint",
        description="Prints a checkpoint's configuration, its arrays, and what would load.",
    )
    inspect.add_argument("model", metavar="MODEL", help="folder, or name on the Hugging Face hub")
    inspect.set_defaults(run=_inspect)

    convert = commands.add_parser(
        "convert",
        help="a checkpoint to a clean safetensors folder",
        description="Writes a checkpoint anew: safetensors under today's names, config.json, and "
        "the tokenizer's files. Prints what was found.",
    )
    convert.add_argument("model", metavar="MODEL", help="folder, or name on the Hugging Face hub")
    convert.add_argument("folder", metavar="FOLDER", help="where to write")
    convert.add_argument("--dtype", choices=_DTYPES, help="default: what the checkpoint has")
    convert.set_defaults(run=_convert)

    export = commands.add_parser(
        "export",
        help="a model as a program that runs without this library",
        description="Writes a model as a program for JAX (model.jax_export) that takes batches of "
        "any size and sequences of any length, and its weights (weights.safetensors). Of a "
        "sentence-transformers folder, it computes sentence vectors.",
    )
    export.add_argument("model", metavar="MODEL", help="folder, or name on the Hugging Face hub")
    export.add_argument("folder", metavar="FOLDER", help="where to write")
    export.add_argument("--dtype", choices=_DTYPES, default="float32", help="default: float32")
    export.add_argument(
        "--platforms",
        nargs="+",
        default=PLATFORMS,
        metavar="NAME",
        help="what it shall run on: cpu, cuda, rocm, tpu; default: cpu cuda tpu",
    )
    export.set_defaults(run=_export)

    fill = commands.add_parser(
        "fill-mask",
        help="words for the gaps in a text",
        description="Prints the likeliest words for each [MASK] in a text: the probability, a tab, "
        "and the text with the word.",
    )
    fill.add_argument("text", metavar="TEXT", help="a text with [MASK] where a word is wanted")
    fill.add_argument(
        "--model",
        metavar="MODEL",
        help="folder, or name on the Hugging Face hub; default: the model of Python's "
        "documentation that comes with the package",
    )
    fill.add_argument("--top-k", type=int, default=5, metavar="N", help="default: 5")
    fill.set_defaults(run=_fill_mask)

    search = commands.add_parser(
        "search",
        help="functions of Python's standard library by what they do",
        description="Prints the functions, classes and methods of Python's standard library that "
        "do what is asked for: the similarity, a tab, the name, a tab, and the first sentences of "
        "the documentation.",
    )
    search.add_argument("query", metavar="QUERY", help='such as "parse json from a string"')
    search.add_argument("--top-k", type=int, default=5, metavar="N", help="default: 5")
    search.set_defaults(run=_search)

    _add_pretrain(commands.add_parser("pretrain", **_PRETRAIN))
    _add_finetune(commands.add_parser("finetune", **_FINETUNE))
    return parser


_PRETRAIN: dict[str, Any] = {
    "help": "train a new model on bare text",
    "description": "Makes a vocabulary for texts, trains a BERT to find masked words in them, and "
    "writes it to a folder. Files are UTF-8, with empty lines between texts. Stopped and called "
    "again, it goes on where it was.",
}


def _add_pretrain(parser: argparse.ArgumentParser) -> None:
    required = parser.add_argument_group("required")
    required.add_argument("--train", nargs="+", required=True, metavar="FILE", help="texts")
    required.add_argument("--out", required=True, metavar="FOLDER", help="where to write")
    required.add_argument("--steps", type=int, required=True, metavar="N", help="updates")
    parser.add_argument("--dev", metavar="FILE", help="texts to choose the best model by")
    parser.add_argument("--model", metavar="MODEL", help="go on with this one; default: a new one")
    for name, default, text in (
        ("--vocab-size", 30522, "tokens of a new vocabulary"),
        ("--hidden-size", 256, "of a new model"),
        ("--layers", 4, "of a new model"),
        ("--heads", 4, "of a new model"),
        ("--batch-size", 32, "rows in a batch"),
        ("--seq", 128, "tokens in a row"),
        ("--seed", 0, "another one for another order and other masks"),
    ):
        parser.add_argument(
            name, type=int, default=default, metavar="N", help=f"{text}; default: {default}"
        )
    for name, default, text in (
        ("--rate", 0.15, "share of tokens that is masked"),
        ("--learning-rate", 1e-3, "the highest"),
        ("--warmup", 0.05, "share of the steps in which the learning rate rises"),
        ("--weight-decay", 0.01, "of matrices"),
    ):
        parser.add_argument(
            name, type=float, default=default, metavar="X", help=f"{text}; default: {default:g}"
        )
    parser.add_argument(
        "--accumulate",
        type=int,
        metavar="N",
        help="parts in which a batch is computed, to save memory; default: what is fastest",
    )
    parser.add_argument(
        "--cased", dest="lowercase", action="store_false", help="a vocabulary that knows capitals"
    )
    parser.add_argument(
        "--pieces",
        dest="whole_words",
        action="store_false",
        help="mask pieces of words by themselves, and not all pieces of a word",
    )
    parser.add_argument("--dtype", choices=_DTYPES, help="what is computed in; default: float32")
    parser.set_defaults(run=_pretrain)


_FINETUNE: dict[str, Any] = {
    "help": "train a model for a task",
    "formatter_class": argparse.RawDescriptionHelpFormatter,
    "description": """\
Fine-tunes a model on a file of examples, and writes it to a folder, with its tokenizer and the
metrics on other examples in metrics.json. Stopped and called again, it goes on where it was.

Files are UTF-8, and told by the endings of their names:

  classification              .jsonl  {"text": "...", "text_pair": "...", "label": "name"}
                              .tsv    a table with columns text, label and, for pairs, text_pair
  multi-label-classification  .jsonl  {"text": "...", "label": ["name", "other name"]}
  regression                  as for classification, with a number as the label
  token-classification        .conll, .txt  a word and its label on each line, empty lines between
                                      sentences; B-, I- and O for entities
                              .jsonl  {"words": ["..."], "labels": ["name"]}
  question-answering          .json   SQuAD's
                              .jsonl  {"question": "...", "context": "...",
                                       "answers": [{"text": "...", "answer_start": 0}]}
  multiple-choice             .jsonl  {"context": "...", "endings": ["...", "..."], "label": 0}
                              .tsv    a table with columns context, ending0, ending1, ..., label
  sentence-embeddings         .jsonl  {"text": "...", "text_pair": "..."}, which belong together
                              .tsv    a table with columns text and text_pair
  sentence-similarity         the same, with a label from -1 to 1: how similar they are

The first line of a .tsv names its columns; they are separated by tabs, and nothing is quoted. For
classes, there may be numbers from 0 on in place of names.""",
}


def _add_finetune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK", choices=TASKS, help=f"one of {', '.join(TASKS)}")
    required = parser.add_argument_group("required")
    for name, metavar, text in (
        ("--model", "MODEL", "folder, or name on the Hugging Face hub, of any BERT"),
        ("--train", "FILE", "examples to train on"),
        ("--out", "FOLDER", "where to write"),
    ):
        required.add_argument(name, required=True, metavar=metavar, help=text)
    parser.add_argument(
        "--dev", metavar="FILE", help="examples to choose the best epoch by; default: the last one"
    )
    parser.add_argument(
        "--labels",
        metavar="NAMES",
        help="the classes in their order, separated by commas; default: the model's or the files'",
    )
    parser.add_argument("--epochs", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="default: 32")
    parser.add_argument(
        "--learning-rate", type=float, default=5e-5, metavar="X", help="the highest; default: 5e-5"
    )
    parser.add_argument(
        "--warmup",
        type=float,
        default=0.1,
        metavar="X",
        help="in which share of the training the learning rate rises; default: 0.1",
    )
    parser.add_argument(
        "--weight-decay", type=float, default=0.01, metavar="X", help="default: 0.01"
    )
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="tokens of an input; default: the model's, or 384 for questions",
    )
    parser.add_argument(
        "--group-by-length",
        action="store_true",
        help="put inputs of similar lengths in a batch: faster where lengths vary much",
    )
    parser.add_argument(
        "--no-answer-threshold",
        type=float,
        metavar="X",
        help="questions may have no answer: by how much its score must exceed that of the best "
        "one, such as 0; default: all have one",
    )
    parser.add_argument("--dtype", choices=_DTYPES, help="what is computed in; default: float32")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.set_defaults(run=_finetune)


def _add_encoder_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="sentence-transformers folder, or name on the hub"
    )
    parser.add_argument("--dtype", choices=_DTYPES, default="float32", help="default: float32")
    parser.add_argument("--prompt-name", metavar="NAME", help="one of the model's prompts")
    parser.add_argument("--max-seq-length", type=int, metavar="N", help="tokens of a text to read")


def _add_texts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="a text")
    parser.add_argument(
        "-f",
        "--file",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="a file with one text a line (may be repeated); without TEXT and FILE, standard input",
    )


def _texts(options: argparse.Namespace) -> list[str]:
    """The texts given as arguments and in files, or else on standard input."""
    texts = list(options.texts)
    for path in options.file:
        try:
            texts += _lines(path.read_bytes())
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    if texts or options.file:
        return texts
    try:
        return _lines(sys.stdin.buffer.read())
    except UnicodeDecodeError as error:
        raise ValueError(f"Standard input is not UTF-8 text: {error}") from error


def _lines(data: bytes) -> list[str]:
    """The lines of a text file, ended by newlines alone (unlike those of `str.splitlines`), of Unix
    or Windows.
    """
    text = data.decode("utf-8-sig").replace("\r\n", "\n")
    return text.removesuffix("\n").split("\n") if text else []


def _encoder(options: argparse.Namespace) -> SentenceEncoder:
    return SentenceEncoder.from_pretrained(
        options.model, dtype=options.dtype, max_seq_length=options.max_seq_length
    )


def _embed(options: argparse.Namespace) -> None:
    output = options.output
    if output is not None and output.suffix not in (".npy", ".jsonl"):
        raise ValueError(f"--output {output} must end in .npy or .jsonl.")
    if output is not None and not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"There is no folder {output.parent} to write {output.name} in.")
    texts = _texts(options)
    vectors = _encoder(options).encode(
        texts,
        prompt_name=options.prompt_name,
        normalize=options.normalize,
        truncate_dim=options.truncate_dim,
    )
    if not np.all(np.isfinite(vectors)):
        raise ValueError(f"{options.model} gives NaN or infinity: its weights are damaged.")
    if options.output is None:
        sys.stdout.writelines(_json_lines(texts, vectors))
    else:
        with staged_file(options.output) as file:
            if options.output.suffix == ".npy":
                np.save(file, np.asarray(vectors))
            else:
                file.write("".join(_json_lines(texts, vectors)).encode("utf-8"))


def _json_lines(texts: list[str], vectors: Sequence[np.ndarray] | np.ndarray) -> list[str]:
    return [
        # As short as a float32 allows: seven digits would not tell all of them apart.
        json.dumps({"text": text, "embedding": [float(str(x)) for x in vector]}, ensure_ascii=False)
        + "\n"
        for text, vector in zip(texts, vectors, strict=True)
    ]


def _similarity(options: argparse.Namespace) -> None:
    texts = _texts(options)
    encoder = _encoder(options)
    query, *vectors = encoder.encode([options.query, *texts], prompt_name=options.prompt_name)
    if not vectors:
        raise ValueError("There are no texts to compare the query with.")
    [scores] = encoder.similarity(query, np.stack(vectors))
    for score, text in zip(scores, texts, strict=True):
        print(f"{score:.4f}\t{text}")


def _inspect(options: argparse.Namespace) -> None:
    model_class = model_class_of(BertConfig.from_pretrained(options.model))
    print(inspect_checkpoint(model_class, options.model))


def _convert(options: argparse.Namespace) -> None:
    report = convert_checkpoint(
        BertModel, options.model, options.folder, dtype=options.dtype or "auto"
    )
    print(report)
    print(f"Written to {options.folder}.")


def _export(options: argparse.Namespace) -> None:
    export_model(
        _any_model(options.model, options.dtype),
        options.folder,
        platforms=options.platforms,
    )
    print(f"Written to {options.folder}.")


def _any_model(path: str, dtype: str) -> Any:
    """The model in a folder, of the class that its files name."""
    location = Location.of(path)
    if read_json(location, "modules.json", expected=list) is not None:
        return SentenceEncoder.from_pretrained(path, dtype=dtype).model
    config = read_json(location, "config.json", {})
    if config.get("model_type") == "encoder-decoder":
        return EncoderDecoderModel.from_pretrained(path, dtype=dtype)
    return model_class_of(BertConfig.from_pretrained(path)).from_pretrained(path, dtype=dtype)


def _fill_mask(options: argparse.Namespace) -> None:
    model = options.model or pydoc.MODEL
    filled = fill_mask(
        BertForMaskedLM.from_pretrained(model),
        Tokenizer.from_pretrained(model),
        options.text,
        top_k=options.top_k,
    )
    for gap in filled:
        for word in gap:
            print(f"{word.probability:.4f}\t{word.text}")


def _search(options: argparse.Namespace) -> None:
    for entry, similarity in pydoc.search(options.query, top_k=options.top_k):
        print(f"{similarity:.4f}\t{entry.name}\t{entry.summary}")


def _pretrain(options: argparse.Namespace) -> None:
    settings = {name: value for name, value in vars(options).items() if name != "run"}
    _print_metrics(pretrain(**settings), options.out)


def _finetune(options: argparse.Namespace) -> None:
    settings = {k: v for k, v in vars(options).items() if k not in ("run", "task", "labels")}
    labels = options.labels
    if labels is not None:
        labels = [name.strip() for name in labels.split(",")]
    _print_metrics(finetune(options.task, labels=labels, **settings), options.out)


def _print_metrics(metrics: Mapping[str, Any], folder: str) -> None:
    for name, value in metrics.items():
        if name != "evaluations":
            print(f"{name}\t{value}")
    print(f"Written to {folder}.")


if __name__ == "__main__":
    sys.exit(main())
