"""`BertConfig`: Hugging Face's fields and rules."""

import copy
import dataclasses
import json
import pickle

import pytest
import transformers
from helpers import run_python

from eqxbert import BertConfig


def test_defaults_are_transformers_and_bert_base_uncased():
    ours, theirs = BertConfig().to_dict(), transformers.BertConfig().to_dict()
    for name in ours.keys() & theirs.keys():
        theirs_value = theirs[name]
        if name == "id2label":
            theirs_value = {str(i): label for i, label in theirs_value.items()}
        assert ours[name] == theirs_value, name


def test_transformers_reads_what_we_write(tmp_path):
    config = BertConfig.tiny(
        num_labels=3, eos_token_id=(1, 2), classifier_dropout=0.2, dtype="float16"
    )
    (tmp_path / "config.json").write_text(config.to_json())
    theirs = transformers.BertConfig.from_pretrained(tmp_path)
    assert (theirs.num_labels, theirs.eos_token_id, theirs.classifier_dropout) == (3, [1, 2], 0.2)
    assert theirs.hidden_size == 128
    assert str(theirs.dtype) == "torch.float16"


def test_round_trip_keeps_everything():
    values = {
        "model_type": "bert",
        "_name_or_path": "somewhere",
        "transformers_version": "4.8.2",
        "directionality": "bidi",
        "pooler_fc_size": 768,
        "hidden_size": 24,
        "num_attention_heads": 3,
        "id2label": {"0": "no", "1": "yes", "2": "maybe"},
        "label2id": {"no": 0, "yes": 1, "maybe": 2},
        "eos_token_id": [3, 4],
        "architectures": ["BertForSequenceClassification"],
        "task_specific_params": {"a": [1, {"b": None}]},
        "torch_dtype": "torch.bfloat16",
    }
    config = BertConfig.from_dict(values)
    written = config.to_dict()
    assert written.pop("dtype") == "bfloat16"
    assert written.items() >= {k: v for k, v in values.items() if k != "torch_dtype"}.items()
    assert BertConfig.from_dict(config.to_dict()) == config
    assert BertConfig.from_dict(json.loads(config.to_json())) == config


def test_is_frozen_hashable_and_can_be_copied():
    config = BertConfig(id2label={0: "a", 1: "b"}, extra={"x": [1]})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.hidden_size = 3  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError, match="frozen BertConfig"):
        config.id2label[0] = "c"  # pyright: ignore[reportIndexIssue]
    assert hash(config) == hash(copy.deepcopy(config))
    assert pickle.loads(pickle.dumps(config)) == config
    assert config != BertConfig()


@pytest.mark.parametrize(
    ("preset", "layers", "hidden", "heads", "intermediate"),
    [
        ("tiny", 2, 128, 2, 512),
        ("mini", 4, 256, 4, 1024),
        ("small", 4, 512, 8, 2048),
        ("medium", 8, 512, 8, 2048),
        ("base", 12, 768, 12, 3072),
        ("large", 24, 1024, 16, 4096),
    ],
)
def test_presets(preset, layers, hidden, heads, intermediate):
    config = getattr(BertConfig, preset)(vocab_size=100)
    assert config.vocab_size == 100
    assert (config.num_hidden_layers, config.hidden_size) == (layers, hidden)
    assert (config.num_attention_heads, config.intermediate_size) == (heads, intermediate)
    assert config.head_size == 64


class TestLabels:
    def test_are_counted_and_named(self):
        assert BertConfig().id2label == {0: "LABEL_0", 1: "LABEL_1"}
        assert BertConfig(num_labels=3).label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
        config = BertConfig(id2label={1: "b", 0: "a"})
        assert (config.num_labels, list(config.id2label), config.label2id) == (
            2,
            [0, 1],
            {"a": 0, "b": 1},
        )
        assert BertConfig(label2id={"x": 1, "y": 0}).id2label == {0: "y", 1: "x"}

    def test_are_in_the_order_of_their_numbers(self):
        labels = {str(i): f"L{i}" for i in (10, 2, *range(2), *range(3, 10))}
        assert list(BertConfig.from_dict({"id2label": labels}).id2label) == list(range(11))

    def test_are_replaced_together(self):
        config = BertConfig(id2label={0: "a", 1: "b"}).replace(num_labels=4)
        assert config.num_labels == len(config.id2label) == len(config.label2id) == 4
        assert config.replace(hidden_act="relu").num_labels == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta'"),
        ({"auto_map": {"AutoModel": "x--y.Z"}}, "auto_map .* code of its own"),
        ({"position_embedding_type": "alibi"}, "position_embedding_type is 'alibi'"),
        ({"position_embedding_type": "rotary"}, "position_embedding_type is 'rotary'"),
        ({"alibi_starting_size": 512}, "alibi_starting_size"),
        ({"feed_forward_type": "glumlp"}, "feed_forward_type"),
        ({"rotary_emb_fraction": 1.0}, "rotary_emb_fraction"),
        ({"pruned_heads": {"0": [12]}}, r"names heads \(12,\) of layer 0; there are 12"),
        ({"hidden_size": 768, "num_attention_heads": 10}, r"hidden_size \(768\) .* \(10\)"),
        ({"num_labels": 3, "id2label": {"0": "a", "1": "b"}}, "num_labels is 3, .* 2 entries"),
        ({"id2label": {"0": "a", "2": "b"}}, r"number its labels 0, 1, 2, .*\[0, 2\]"),
        ({"id2label": {"zero": "a"}}, "keys of id2label must be numbers"),
        ({"vocab_size": 0}, "vocab_size must be a positive integer, got 0"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob must be a probability .* 1.5"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps must be a positive"),
        ({"chunk_size_feed_forward": -1}, "chunk_size_feed_forward"),
        ({"problem_type": "clustering"}, "problem_type is 'clustering'"),
        ({"add_cross_attention": True}, "is_decoder is False"),
        ({"pad_token_id": 30522}, r"pad_token_id \(30522\) must be an id"),
    ],
)
def test_what_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        BertConfig.from_dict(values)


def test_of_an_encoder_decoder_the_encoders_is_taken():
    values = {"model_type": "encoder-decoder", "encoder": {"model_type": "bert", "vocab_size": 7}}
    assert BertConfig.from_dict(values) == BertConfig(vocab_size=7)


def test_extra_cannot_hold_fields():
    with pytest.raises(ValueError, match=r"'hidden_size'.* are fields of BertConfig"):
        BertConfig(extra={"hidden_size": 5})


def test_unknown_options_are_named():
    with pytest.raises(TypeError, match="num_label: neither a field of BertConfig nor"):
        BertConfig.from_pretrained("folder", num_label=9)


WRONG_TYPES = [
    ("hidden_dropout_prob", None),
    ("hidden_act", {"name": "gelu"}),
    ("initializer_range", "0.02"),
    ("vocab_size", "33"),
    ("is_decoder", "no"),
    ("pad_token_id", "0"),
    ("eos_token_id", "a"),
    ("dtype", 3),
    ("id2label", [1]),
    ("pruned_heads", [1]),
    ("pruned_heads", {"x": [1]}),
    ("pruned_heads", {"0": 1}),
    ("pruned_heads", {"0": None}),
    ("pruned_heads", {"0": ["1"]}),
    ("pruned_heads", {"0": [1, "a"]}),
    ("pruned_heads", {"0": [[1]]}),
    ("pruned_heads", {"0": [1.0]}),
]


def test_wrong_types_without_type_checking():
    """These break the annotations too. What is tested is the message where nobody checks them."""
    result = run_python(f"""
import json, eqxbert
messages = []
for name, value in {WRONG_TYPES!r}:
    try:
        eqxbert.BertConfig.from_dict({{name: value}})
        messages.append("no error")
    except Exception as error:
        messages.append(f"{{type(error).__name__}}: {{error}}")
print(json.dumps(messages))
""")
    assert result.returncode == 0, result.stderr
    messages = json.loads(result.stdout)
    for (name, value), message in zip(WRONG_TYPES, messages, strict=True):
        assert message.startswith("ValueError: "), (name, value, message)
        assert name in message, (name, value, message)


class TestPrunedHeads:
    def test_are_sorted_numbers(self):
        config = BertConfig.from_dict({"pruned_heads": {"10": [3, 1, 3], "2": [0], "5": []}})
        assert config.pruned_heads == {2: (0,), 10: (1, 3)}
        assert list(config.pruned_heads) == [2, 10]
        assert config == BertConfig(pruned_heads={10: (1, 3), 2: (0,)})
        assert hash(config) == hash(BertConfig(pruned_heads={2: [0], 10: [1, 3]}))

    def test_are_written_as_transformers_4_reads_them(self):
        config = BertConfig(pruned_heads={10: (1, 3), 2: (0,)})
        values = json.loads(config.to_json())
        assert values["pruned_heads"] == {"2": [0], "10": [1, 3]}
        assert BertConfig.from_dict(values) == config
        assert "pruned_heads" not in BertConfig().to_dict()
        assert BertConfig.from_dict({"pruned_heads": None}) == BertConfig()

    def test_leave_the_other_heads(self):
        config = BertConfig.tiny(num_attention_heads=4, pruned_heads={1: (2, 0)})
        assert config.kept_heads(0) == (0, 1, 2, 3)
        assert config.kept_heads(1) == (1, 3)
        assert config.head_size == 32, "that of the heads that are left"

    @pytest.mark.parametrize(
        ("pruned", "message"),
        [
            ({12: (0,)}, "names layer 12; there are 12, from 0"),
            ({-1: (0,)}, "names layer -1"),
            ({0: (12,)}, r"names heads \(12,\) of layer 0; there are 12, from 0"),
            ({0: (-1, 3)}, r"names heads \(-1, 3\) of layer 0"),
            ({0: tuple(range(12))}, "takes every head out of layer 0"),
        ],
    )
    def test_must_be_there(self, pruned, message):
        with pytest.raises(ValueError, match=message):
            BertConfig(pruned_heads=pruned)

    def test_must_be_there_in_a_smaller_model_too(self):
        config = BertConfig(pruned_heads={11: (0,)})
        with pytest.raises(ValueError, match="names layer 11; there are 6"):
            config.replace(num_hidden_layers=6)
        assert config.replace(num_hidden_layers=6, pruned_heads={}).pruned_heads == {}


GOOGLES = {"vocab_size": 7, "hidden_size": 12, "num_attention_heads": 3, "pooler_type": "x"}


class TestGooglesConfiguration:
    def test_is_read_where_there_is_no_other(self, tmp_path):
        (tmp_path / "bert_config.json").write_text(json.dumps(GOOGLES))
        config = BertConfig.from_pretrained(tmp_path)
        assert config == BertConfig.from_dict(GOOGLES)
        assert (config.vocab_size, config.extra) == (7, {"pooler_type": "x"})
        assert json.loads(config.to_json())["model_type"] == "bert"
        (tmp_path / "config.json").write_text(json.dumps(GOOGLES | {"vocab_size": 8}))
        assert BertConfig.from_pretrained(tmp_path).vocab_size == 8

    def test_is_named_in_errors(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no config\.json, nor .*bert_config\.json"):
            BertConfig.from_pretrained(tmp_path)
        (tmp_path / "bert_config.json").write_text("{")
        with pytest.raises(ValueError, match=r"bert_config\.json is not valid JSON"):
            BertConfig.from_pretrained(tmp_path)
        (tmp_path / "bert_config.json").write_text(json.dumps({"vocab_size": 0}))
        with pytest.raises(ValueError, match=r"bert_config\.json: vocab_size must be"):
            BertConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 6000, "{"])
def test_json_that_cannot_be_read(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        BertConfig.from_pretrained(tmp_path)


def test_what_is_tolerated():
    config = BertConfig.from_dict(
        {
            "hidden_dropout_prob": 0,
            "id2label": None,
            "position_embedding_type": None,
            "pruned_heads": {},
            "gradient_checkpointing": False,
            "dtype": "auto",
            "pad_token_id": None,
        }
    )
    assert config.position_embedding_type == "absolute"
    assert config.dtype is None
    assert config.pad_token_id is None


def test_from_pretrained_with_changes(tmp_path):
    (tmp_path / "config.json").write_text(BertConfig.tiny(id2label={0: "a", 1: "b"}).to_json())
    assert BertConfig.from_pretrained(tmp_path) == BertConfig.tiny(id2label={0: "a", 1: "b"})
    config = BertConfig.from_pretrained(tmp_path, num_labels=3)
    assert (config.hidden_size, config.num_labels) == (128, 3)
    with pytest.raises(FileNotFoundError, match="no folder"):
        BertConfig.from_pretrained(tmp_path / "nothing")
