"""Without the packages of the extra `text`, the rest works, and what needs one says so."""

import pytest
from helpers import run_python


def run_without(package: str, code: str) -> str:
    hidden = "".join(f"sys.modules[{name!r}] = None\n" for name in (package, f"{package}.auto"))
    finished = run_python(f"import sys\n{hidden}import eqxbert\n{code}")
    return finished.stdout + finished.stderr


@pytest.mark.parametrize("package", ["tokenizers", "tqdm", "huggingface_hub"])
def test_the_import_needs_no_extra(package):
    assert run_without(package, "print(eqxbert.BertConfig().hidden_size)").split() == ["768"]


def test_models_need_no_tokenizer(tiny_bert):
    code = f"model = eqxbert.BertModel.from_pretrained({str(tiny_bert)!r})\nprint('read')"
    assert run_without("tokenizers", code).split() == ["read"]


@pytest.mark.parametrize("what", ["Tokenizer", "SentenceEncoder"])
def test_text_names_the_package_and_how_to_get_it(sentence_model, tiny_bert, what):
    for folder in (sentence_model, tiny_bert):  # with tokenizer.json, and with vocab.txt
        code = f"eqxbert.{what}.from_pretrained({str(folder)!r})"
        output = run_without("tokenizers", code)
        assert "ModuleNotFoundError: Text needs the package tokenizers: pip install " in output
        assert "'eqxbert[text]'" in output


def test_a_progress_bar_needs_tqdm_only_if_asked_for(sentence_model):
    load = f"encoder = eqxbert.SentenceEncoder.from_pretrained({str(sentence_model)!r})\n"
    code = (
        f"{load}print(encoder.encode(['a']).shape)\nencoder.encode(['a'], show_progress_bar=True)"
    )
    output = run_without("tqdm", code)
    assert output.startswith("(1, 12)\n")
    assert "ModuleNotFoundError: A progress bar needs the package tqdm: pip install" in output
    assert "'eqxbert[text]'" in output
