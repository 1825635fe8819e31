"""Folders as sentence-transformers writes them, or used to."""

import json
import logging
import shutil
from pathlib import Path

import jax.monitoring
import numpy as np
import pytest
import torch
from helpers import max_difference, run_python
from safetensors.torch import load_file
from sentence_transformers.base.modules import Dense, Normalize
from text.comparison import TEXTS, assert_same_vectors, read_by_the_original
from text.tiny import HIDDEN, POSITIONS, edit_json
from tolerances import FLOAT32

import eqxbert
from eqxbert.cli import main

# Keys of the dialect before version 5.4: a boolean for each mode.
OLD_KEYS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
MODES = list(OLD_KEYS)


def write_old_pooling(folder: Path, *modes: str, **changes) -> None:
    values = {"word_embedding_dimension": HIDDEN}
    values |= {key: mode in modes for mode, key in OLD_KEYS.items()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(values | changes))


@pytest.mark.parametrize("mode", MODES)
def test_pooling_modes(save_sentence_model, mode):
    assert_same_vectors(save_sentence_model(pooling_mode=mode))


@pytest.mark.parametrize("modes", [("mean", "cls"), ("lasttoken", "max", "mean"), tuple(MODES)])
def test_several_pooling_modes_in_their_order(save_sentence_model, modes):
    assert_same_vectors(save_sentence_model(pooling_mode=modes), len(modes) * HIDDEN)


@pytest.mark.parametrize("modes", [*((mode,) for mode in MODES), ("mean", "cls"), MODES, ()])
def test_pooling_modes_in_the_old_dialect(copy, modes):
    write_old_pooling(copy, *modes)
    expected = read_by_the_original(copy)[1].pooling_mode
    pooling = eqxbert.SentenceEncoder.from_pretrained(copy).model.pooling
    assert pooling.modes == ((expected,) if isinstance(expected, str) else expected)
    assert set(pooling.modes) == set(modes or ["mean"])


def test_the_new_dialect_wins_over_the_old(copy):
    write_old_pooling(copy, "mean", pooling_mode="cls")
    assert_same_vectors(copy)
    assert eqxbert.SentenceEncoder.from_pretrained(copy).model.pooling.modes == ("cls",)


@pytest.mark.parametrize("mode", MODES)
def test_a_prompt_that_does_not_count(save_sentence_model, mode):
    folder = save_sentence_model(
        pooling_mode=mode, include_prompt=False, prompts={"query": "query: the "}
    )
    assert_same_vectors(folder, prompt_name="query")


@pytest.mark.parametrize("mode", ["mean", "lasttoken"])
def test_a_prompt_that_does_not_count_and_leaves_no_room_for_the_text(save_sentence_model, mode):
    folder = save_sentence_model(pooling_mode=mode, include_prompt=False)
    assert_same_vectors(folder, prompt="x" * 60)


def test_a_default_prompt(save_sentence_model):
    folder = save_sentence_model(prompts={"query": "query: "}, default_prompt_name="query")
    with_prompt = assert_same_vectors(folder)
    assert max_difference(with_prompt, assert_same_vectors(folder, prompt="query: ")) == 0
    assert max_difference(with_prompt, assert_same_vectors(folder, prompt="")) > 0.01


@pytest.mark.parametrize(
    "head",
    [
        [Normalize()],
        [Dense(HIDDEN, 7)],
        [Dense(HIDDEN, 7, bias=False, activation_function=torch.nn.Identity())],
        [Dense(HIDDEN, 15, use_residual=True), Normalize()],
        [Normalize(), Dense(HIDDEN, 7), Dense(7, 4, activation_function=torch.nn.ReLU())],
    ],
    ids=["normalize", "dense", "linear", "residual, normalize", "normalize, dense, dense"],
)
def test_what_follows_the_pooling(save_sentence_model, head):
    size = next((m.out_features for m in reversed(head) if isinstance(m, Dense)), HIDDEN)
    assert_same_vectors(save_sentence_model(*head), size)


def test_normalize_without_its_folder(save_sentence_model):
    """It has nothing to say, and git does not keep empty folders."""
    folder = save_sentence_model(Normalize())
    shutil.rmtree(folder / "2_Normalize")
    vectors = assert_same_vectors(folder)
    assert max_difference(np.linalg.norm(vectors, axis=-1), np.ones(len(TEXTS))) <= FLOAT32


CONFIG_NAMES = ["bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"]


@pytest.mark.parametrize("name", CONFIG_NAMES)
def test_max_seq_length_under_the_names_of_its_file(copy, name):
    (copy / "sentence_bert_config.json").unlink()
    path = copy / f"sentence_{name}_config.json"
    path.write_text(json.dumps({"max_seq_length": 9, "do_lower_case": False}))
    encoder = eqxbert.SentenceEncoder.from_pretrained(copy)
    assert encoder.max_seq_length == read_by_the_original(copy).max_seq_length == 9


def test_max_seq_length_cuts_texts_off(copy):
    edit_json(copy / "sentence_bert_config.json", max_seq_length=4)
    assert_same_vectors(copy)


@pytest.mark.parametrize("limits", [(9, 20), (20, 9), (None, 9), (9, None), (None, None)], ids=str)
def test_max_seq_length_counts_before_the_tokenizers_own(copy, limits):
    edit_json(copy / "sentence_bert_config.json", max_seq_length=limits[0])
    edit_json(copy / "tokenizer_config.json", model_max_length=limits[1] or int(1e30))
    encoder = eqxbert.SentenceEncoder.from_pretrained(copy)
    expected = limits[0] or limits[1] or POSITIONS
    assert encoder.max_seq_length == read_by_the_original(copy).max_seq_length == expected


def test_do_lower_case(copy):
    cased = assert_same_vectors(copy)
    edit_json(copy / "sentence_bert_config.json", do_lower_case=True)
    lower = assert_same_vectors(copy)
    differs = np.abs(cased - lower).max(axis=-1) > 0.01
    assert differs.tolist() == [False, False, True, False, False, True]


def test_a_transformer_in_a_folder_of_its_own(copy):
    """The layout before version 2."""
    transformer = copy / "0_Transformer"
    transformer.mkdir()
    for path in copy.iterdir():
        if path.is_file() and not path.name.startswith(("modules", "config_sentence")):
            path.rename(transformer / path.name)
    modules = json.loads((copy / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (copy / "modules.json").write_text(json.dumps(modules))
    assert_same_vectors(copy)


def as_torch_files(folder: Path, *, legacy: bool = False) -> None:
    """Has the weights of every module in a pytorch_model.bin, as before version 2.3."""
    for path in list(folder.rglob("model.safetensors")):
        state, target = load_file(path), path.with_name("pytorch_model.bin")
        torch.save(state, target, _use_new_zipfile_serialization=not legacy)
        path.unlink()


HEAD = (Dense(HIDDEN, 15, use_residual=True), Normalize(), Dense(15, 7, bias=False))


@pytest.mark.parametrize("legacy", [False, True])
def test_weights_as_pytorch_saves_them(save_sentence_model, legacy):
    folder = save_sentence_model(*HEAD)
    before = assert_same_vectors(folder, 7)
    as_torch_files(folder, legacy=legacy)
    assert not list(folder.rglob("*.safetensors"))
    assert np.array_equal(assert_same_vectors(folder, 7), before)


@pytest.mark.parametrize("legacy", [False, True])
def test_convert_makes_them_safetensors(save_sentence_model, tmp_path, legacy):
    folder = save_sentence_model(*HEAD)
    before = assert_same_vectors(folder, 7)
    as_torch_files(folder, legacy=legacy)
    assert main(["convert", str(folder), str(tmp_path / "new")]) == 0
    assert not list((tmp_path / "new").rglob("*.bin"))
    assert np.array_equal(assert_same_vectors(tmp_path / "new", 7), before)
    assert main(["convert", str(folder), str(folder)]) == 0
    assert np.array_equal(assert_same_vectors(folder, 7), before)


def test_the_path_of_the_transformers_weights(save_sentence_model, tmp_path):
    """The other modules keep theirs in files of their own, whose names may be others."""
    folder = save_sentence_model(*HEAD)
    before = assert_same_vectors(folder, 7)
    weights = folder / "pytorch_model.bin"
    torch.save(load_file(folder / "model.safetensors"), weights)
    (folder / "model.safetensors").write_bytes(b"damaged")
    encoder = eqxbert.SentenceEncoder.from_pretrained(weights)
    assert np.array_equal(encoder.encode(TEXTS), before)
    assert main(["convert", str(weights), str(tmp_path / "new")]) == 0
    assert np.array_equal(assert_same_vectors(tmp_path / "new", 7), before)


def test_a_plain_bert_gets_mean_pooling(tiny_bert, caplog):
    with caplog.at_level(logging.WARNING, "eqxbert"):
        assert_same_vectors(tiny_bert)
    assert "mean pooling" in caplog.text


def test_without_modules_json_the_other_files_do_not_count(save_sentence_model):
    """As in sentence-transformers, which does not even look for them."""
    folder = save_sentence_model(pooling_mode="cls")
    (folder / "modules.json").unlink()
    assert_same_vectors(folder)


# XLA ends the whole process over a mask that it can see is empty, hence an interpreter of its own.
ENCODE = """
import eqxbert
encoder = eqxbert.SentenceEncoder.from_pretrained({folder!r})
print(encoder.encode([{text!r}], prompt={prompt!r}).tolist())
"""


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "max"])
def test_a_prompt_with_more_tokens_than_the_prompted_text(save_sentence_model, mode):
    """Together they make a word of more than 100 letters, which is a single unknown token."""
    folder = save_sentence_model(pooling_mode=mode, include_prompt=False)
    prompt, text = "q" * 30, "q" * 80
    expected = read_by_the_original(folder).encode([text], prompt=prompt)
    finished = run_python(ENCODE.format(folder=str(folder), text=text, prompt=prompt))
    assert finished.returncode == 0, finished.stderr
    assert max_difference(json.loads(finished.stdout), expected) <= FLOAT32


def test_prompts_that_do_not_count_need_no_program_for_each_length(save_sentence_model):
    folder = save_sentence_model(include_prompt=False)
    encoder = eqxbert.SentenceEncoder.from_pretrained(folder)
    compiled: list[str] = []

    def listen(event: str, duration: float, **_) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for prompt in ("the ", "the cat ", "the cat sat "):
            encoder.encode(["sat"], prompt=prompt)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(compiled) == 1
