"""Folders that hold no whole BERT: each is refused with a message that says why."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert.checkpoints import assert_same_arrays, write_checkpoint, write_config

import eqxbert
from eqxbert.convert import load

INDEX = "model.safetensors.index.json"


def from_folder(folder: str | Path, **options: Any) -> eqxbert.BertModel:
    return eqxbert.BertModel.from_pretrained(folder, **options)


def test_no_such_folder(tmp_path: Path) -> None:
    for name in (tmp_path / "nothing", str(tmp_path / "nothing"), "./nothing", "../no", "~/no"):
        with pytest.raises(FileNotFoundError, match=r"There is no folder .*(nothing|no)"):
            from_folder(name)


@pytest.mark.parametrize("name", ["", "a/b/c", "a\\b", Path("nothing")])
def test_what_cannot_be_a_repository_is_not_looked_for_on_the_hub(name: Any) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no folder|is empty"):
        from_folder(name)


@pytest.mark.parametrize("name", ["a b", "a..b/c", "-a/b", "a" * 120])
def test_what_the_hub_does_not_allow_as_a_name(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*cannot be the name"):
        from_folder(name)


def test_the_path_of_the_weights_stands_for_their_folder(tmp_path: Path, tiny_state: Any) -> None:
    path = write_checkpoint(tmp_path, tiny_state) / "model.safetensors"
    assert_same_arrays(eqxbert.BertModel.from_pretrained(path), tiny_state)


def test_the_path_of_another_file(tmp_path: Path, tiny_state: Any) -> None:
    path = write_checkpoint(tmp_path, tiny_state) / "config.json"
    with pytest.raises(ValueError, match=r"config\.json .* begins with b'\{"):
        eqxbert.BertModel.from_pretrained(path)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no config\.json.*It is empty"):
        from_folder(tmp_path)


def test_a_subfolder_that_is_not_there(tmp_path: Path, tiny_state: Any) -> None:
    write_checkpoint(tmp_path, tiny_state)
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*inner"):
        from_folder(tmp_path, subfolder="inner")


def test_a_folder_without_weights_says_what_it_has(tmp_path: Path) -> None:
    write_config(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError) as caught:
        from_folder(tmp_path)
    for part in ("no model.safetensors", "pytorch_model.bin", "It has config.json, weights.bin."):
        assert part in str(caught.value)


def test_a_folder_without_a_configuration_says_what_it_has(tmp_path: Path, tiny_state: Any) -> None:
    write_checkpoint(tmp_path, tiny_state)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no config\.json.*It has model\.safetensors"):
        from_folder(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not valid JSON"),
        (b"{'a': 1}", "is not valid JSON"),
        (b'{"a": "\xff"}', "is not valid JSON"),
        (b"[1]", "holds a JSON list, not an object"),
        (b'"bert"', "holds a JSON str, not an object"),
        (b"null", "holds a JSON NoneType, not an object"),
    ],
)
def test_a_configuration_that_is_none(
    tmp_path: Path, tiny_state: Any, text: bytes, message: str
) -> None:
    write_checkpoint(tmp_path, tiny_state)
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=message) as caught:
        from_folder(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta', but eqxbert reads only 'bert'"),
        ({"model_type": "nomic_bert"}, "model_type is 'nomic_bert'"),
        ({"model_type": None}, "model_type is None"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "code of its own"),
        ({"rotary_emb_fraction": 1.0}, "other mathematics"),
        ({"feed_forward_type": "glu"}, "other mathematics"),
        ({"alibi_starting_size": 512}, "other mathematics"),
        ({"position_embedding_type": "alibi"}, "position_embedding_type is 'alibi'"),
        ({"pruned_heads": {"0": [3]}}, r"names heads \(3,\) of layer 0; there are 3"),
        ({"pruned_heads": {"x": [1]}}, "keys of pruned_heads must be numbers"),
        ({"hidden_act": "relu6x"}, "relu6x"),
        ({"num_attention_heads": 5}, r"hidden_size \(12\) must be a multiple"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer, got 0"),
        ({"vocab_size": -1}, "vocab_size must be a positive integer, got -1"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob must be a probability"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps must be a positive float"),
        ({"pad_token_id": 33}, r"pad_token_id \(33\) must be an id"),
        ({"num_labels": 3, "id2label": {"0": "a"}}, "num_labels is 3, but id2label has 1"),
        ({"id2label": {"0": "a", "2": "b"}}, "must number its labels 0, 1, 2"),
        ({"id2label": {"a": "b"}}, "keys of id2label must be numbers"),
        ({"problem_type": "ranking"}, "problem_type is 'ranking'"),
        ({"add_cross_attention": True}, "add_cross_attention"),
    ],
)
def test_a_configuration_that_is_not_a_berts(
    tmp_path: Path, tiny_state: Any, values: dict[str, Any], message: str
) -> None:
    write_checkpoint(tmp_path, tiny_state, **values)
    with pytest.raises(ValueError, match=message):
        from_folder(tmp_path)


def test_the_configuration_is_looked_at_before_the_weights(tmp_path: Path) -> None:
    write_config(tmp_path, auto_map={"AutoModel": "x.Y"})
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="code of its own"):
        load(eqxbert.BertModel, tmp_path)


def test_weights_of_another_size_than_the_configuration_says(
    tmp_path: Path, tiny_state: Any
) -> None:
    write_checkpoint(tmp_path, tiny_state, hidden_size=24)
    with pytest.raises(ValueError, match=r"\(33, 12\) in the checkpoint, \(33, 24\) in the model"):
        from_folder(tmp_path)


def test_no_code_of_a_checkpoint_is_run(tmp_path: Path, tiny_state: Any) -> None:
    write_checkpoint(tmp_path, tiny_state)
    (tmp_path / "modeling.py").write_text("raise SystemExit('run')")
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    np.testing.assert_array_equal(
        from_folder(tmp_path).embeddings.word.weight,
        tiny_state["embeddings.word_embeddings.weight"],
    )
