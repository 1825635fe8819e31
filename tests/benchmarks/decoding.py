"""How fast text is generated, next to transformers' PyTorch and to the memory of the machine.

    python tests/benchmarks/decoding.py [--rounds 5] [--threads 2] [--device gpu]

A decoder of MiniLM's shape with random weights, in float32, continues 16 tokens by 112: greedily,
and with 4 beams, for one row and for 8. Both generate the same tokens, or it is an error. They take
turns, and what is given are medians; the floor is the time to read the weights once for each token,
at the rate at which this machine multiplies as many numbers with one vector. (All rows and beams
share what is read.) Then the milliseconds for each token by the number of tokens: with a cache they
grow with the attention to it alone.

On a GPU, it is a decoder of BERT-base's shape in bfloat16. There two continuations part where two
tokens are as likely up to rounding; but transformers' model must find ours as likely as its own.

It runs in the environment of the `python` that is called, which must have transformers and torch.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

import eqxbert

PROMPT, NEW = 16, 112
SHAPE: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "is_decoder": True,
}
GPU_SHAPE: dict[str, Any] = {"is_decoder": True}  # else BERT-base's
CELLS = ((1, 1), (8, 1), (1, 4), (8, 4))
LENGTHS = (28, 112, 240, 480)

# PyTorch's threads spin for more work for up to 0.2 s after a call, and would slow the next one.
PAUSE_SECONDS = 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description="Generation side by side with transformers.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    is_on_gpu = options.device == "gpu"
    shape = GPU_SHAPE if is_on_gpu else SHAPE
    # (Its type has no `generate`, which comes from a mixin.)
    reference: Any = transformers.BertLMHeadModel(transformers.BertConfig(**shape)).eval()
    model = eqxbert.convert.from_state_dict(
        eqxbert.BertForCausalLM, eqxbert.BertConfig(**shape), reference.state_dict()
    )
    if is_on_gpu:
        reference = reference.to("cuda", torch.bfloat16)
        model = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model)
    floor = reading_seconds(model, options.rounds)
    print(f"floor {floor * 1e3:.2f} ms a token")

    print(f"{'rows':>4}{'beams':>6}{'tokens/s':>10}{'transformers':>14}{'ratio':>7}{'x floor':>9}")
    for rows, beams in CELLS:
        prompts = random_prompts(rows)
        calls = {
            "ours": lambda p=prompts, b=beams: ours(model, p, b),
            "theirs": lambda p=prompts, b=beams: theirs(reference, p, b),
        }
        found, expected = (call() for call in calls.values())  # which also compiles
        if is_on_gpu:
            likely = [log_likelihood(reference, tokens) for tokens in (found, expected)]
            assert np.isclose(*likely, rtol=0.003), f"log likelihoods a token: {likely}"
        else:
            assert np.array_equal(found, expected), "they generate different tokens"
        seconds = medians(calls, options.rounds)
        speeds = {name: rows * NEW / seconds[name] for name in calls}
        ratio = speeds["ours"] / speeds["theirs"]
        above_floor = seconds["ours"] / NEW / floor
        print(
            f"{rows:4}{beams:6}{speeds['ours']:10.0f}{speeds['theirs']:14.0f}{ratio:7.2f}"
            f"{above_floor:9.2f}",
            flush=True,
        )

    prompts = random_prompts(1)
    calls = {str(new): lambda n=new: ours(model, prompts, 1, n) for new in LENGTHS}
    for call in calls.values():
        call()
    print(f"{'new tokens':>10}{'ms a token':>12}")
    for new, seconds in medians(calls, options.rounds).items():
        print(f"{new:>10}{seconds / int(new) * 1e3:12.2f}")


def ours(
    model: eqxbert.BertForCausalLM, prompts: np.ndarray, beams: int, new: int = NEW
) -> np.ndarray:
    out = eqxbert.generate(model, prompts, max_new_tokens=new, num_beams=beams)
    return np.asarray(out.sequences)


def theirs(reference: Any, prompts: np.ndarray, beams: int) -> np.ndarray:
    ids = torch.tensor(prompts, device=reference.device)
    with torch.inference_mode():
        out = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW,
            num_beams=beams,
            do_sample=False,
            pad_token_id=0,
        )
    return out.cpu().numpy()


@torch.inference_mode()
def log_likelihood(reference: Any, tokens: np.ndarray) -> float:
    """The mean log probability of the generated tokens."""
    ids = torch.tensor(tokens, device=reference.device)
    log_probabilities = reference(ids[:, :-1]).logits.float().log_softmax(-1)
    chosen = log_probabilities.gather(-1, ids[:, 1:, None])[:, PROMPT - 1 :]
    return chosen.mean().item()


def random_prompts(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).integers(1000, 30000, (rows, PROMPT))


def reading_seconds(model: eqxbert.BertForCausalLM, rounds: int) -> float:
    """The seconds of a product of one vector with as many numbers as are read for a token: all
    weights but those of the positions.
    """
    count = sum(x.size for x in jax.tree.leaves(model) if x.shape[0] != 512)
    dtype = jax.tree.leaves(model)[0].dtype
    numbers, vector = jnp.ones((count // 512, 512), dtype), jnp.ones(512, dtype)
    product = jax.jit(lambda numbers, vector: numbers @ vector)

    def read() -> None:  # as often as for as many tokens, since a first time is slower
        jax.block_until_ready([product(numbers, vector) for _ in range(NEW)])

    read()
    return medians({"read": read}, rounds)["read"] / NEW


def medians(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median seconds of each call, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(PAUSE_SECONDS)
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


if __name__ == "__main__":
    main()
