"""A tiny model that learns a task of a few words in a second or two."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from text.tiny import VOCABULARY

import eqxbert
from eqxbert.text.tasks import Task
from eqxbert.training import adamw, fit

LETTERS = list("abcdefghij")


def small_config(**changes: Any) -> eqxbert.BertConfig:
    sizes = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "initializer_range": 0.1,  # BERT's is for a hidden size of hundreds
    }
    return eqxbert.BertConfig(**sizes | changes)


def new_model(task: Task) -> Any:
    return task.model_class(task.config, key=jax.random.key(0))


def learn(task: Task, train: Any, dev: Any, steps: int = 60) -> tuple[Any, dict[str, float]]:
    """A model that was trained on some examples, and its metrics on others."""
    model = new_model(task)
    result = fit(
        model,
        task.train_batches(train, batch_size=32),
        adamw(5e-3, total_steps=steps, warmup=0.1),
        key=jax.random.key(1),
        steps=steps,
        evaluate=task.evaluator(dev),
        best_metric=task.main_metric,
        best_is_highest=True,
        progress=False,
    )
    return result.model, result.evaluations[-1]


def letters(rng: np.random.Generator, number: int) -> list[str]:
    return [str(letter) for letter in rng.choice(LETTERS, number)]


class Table(eqx.Module):
    """A model whose scores are known: those of a token follow from the token alone, those of a text
    are the sums of its tokens'. For tests of what is made of scores.
    """

    scores: Float[Array, "vocab labels"]
    config: eqxbert.BertConfig = eqx.field(static=True)

    @classmethod
    def of(cls, task: Task, scores: dict[str, list[float]]) -> "Table":
        """Scores by the token; zero for others."""
        labels = len(next(iter(scores.values())))
        table = np.zeros((task.config.vocab_size, labels), np.float32)
        for token, values in scores.items():
            table[task.tokenizer.token_to_id(token)] = values
        return cls(jnp.asarray(table), task.config)

    def __call__(
        self, input_ids: Any, attention_mask: Any, token_type_ids: Any
    ) -> dict[str, Array]:
        del token_type_ids
        by_token = self.scores[input_ids]
        by_text = jnp.sum(by_token * attention_mask[..., None].astype(by_token.dtype), axis=-2)
        if self.config.architectures == ("tokens",):
            return {"logits": by_token}
        if self.config.architectures == ("choices",):
            return {"logits": by_text[..., 0]}
        return {
            "logits": by_text,
            "start_logits": by_token[..., 0],
            "end_logits": by_token[..., -1],
        }
