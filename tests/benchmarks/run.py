"""Measures eqxbert side by side with other engines that run BERT.

    EQXBERT_DATA=path/to/data python tests/benchmarks/run.py --json results.json

Four kinds of work are timed: `forward` (token ids to hidden states, for all-MiniLM-L6-v2 and a
model of BERT-base's size, in float32 and bfloat16), `train` (a step of AdamW on masked words, for
MiniLM's size, with dropout; in bfloat16, the parameters are float32), `compile_forward` and
`compile_train` (tracing and compiling one and the other anew, with 6, 12 and 24 layers) and
`encode` (texts to sentence vectors, tokenizer included). Every combination of work, model, dtype
and size is a *cell*. In a cell all peers load the same weights and must agree on the result; then
they take turns at being timed, so that a machine that slows down slows all of them.

`roster.py` lists the peers, their pinned requirements and what each cannot do; each has a small
script in `peers/`. Each runs in a virtual environment of its own, made at the first run in the
`--cache` folder: some gigabytes and minutes. pip's own settings apply; on Linux, point it at
PyTorch's index of CPU builds to be spared the CUDA build. A peer that cannot be installed, fails or
computes something else is reported and left out; what it wrote is in the cache's `logs`.

The table gives the seconds to load a model, the seconds of the first call (in which JAX compiles),
the median, least and greatest time of the rounds, and the ratio of the median to eqxbert's: 2.00
took twice as long. All peers share the first `--threads` CPUs that this process may use; start it
under `taskset` to choose others.

`encode` has a cell for the latency of one short sentence, and two for many texts, of
`sts-benchmark/sts-dev.csv` (STS-B's development pairs) and `scifact-corpus/corpus.jsonl` (SciFact's
abstracts) in the folder that the environment variable EQXBERT_DATA names. They are left out without
it.

`--only` takes parts of a name such as `forward/minilm/float32/8x128/openvino`, with commas between
alternatives:

    python tests/benchmarks/run.py --only forward/minilm --only eqxbert,openvino

With `--device gpu`, the work is forward passes and steps of models of BERT-base's and BERT-large's
sizes in bfloat16, 32,768 tokens at a time, and the peers run one after the other, each with the GPU
to itself. Where no packages can be fetched, `--python PATH` names a Python that has what the peers
need (`--python flax=PATH` for the Flax models, which want transformers 4).
"""

import argparse
import sys
from pathlib import Path

from cells import (
    GPU_MODELS,
    GPU_SHAPES,
    SHAPES,
    Cell,
    compile_cells,
    encode_cells,
    forward_cells,
    gpu_cells,
    latency_cells,
    train_cells,
)
from checkpoints import add_onnx, make_model
from engines import Engine, environ, limit_cpus
from environments import Environments, UnavailableError
from measurement import TOLERANCE, Result, compare, measure
from peers.protocol import Workload
from report import HEADER, Record, rows
from roster import PEERS, Peer

QUICK_ROUNDS = 2
QUICK_TEXTS = 64

Plan = list[tuple[Cell, list[Peer]]]


def main() -> None:
    options = parse_arguments()
    environments = Environments(options.cache, options.device, options.python)
    record = Record(options)
    plan = make_plan(options, record)
    if not plan:
        sys.exit("there is nothing to measure: --only left nothing over")
    if options.device == "cpu":
        limit_cpus(options.threads)
    models = make_models(plan, environments, options, record)
    plan = [(cell, peers) for cell, peers in plan if cell.model in models]
    print(HEADER)
    if options.device == "cpu":
        take_turns(plan, models, environments, options, record)
    else:
        one_after_another(plan, models, environments, options, record)
    record.print_left_out()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each peer")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each peer and cell")
    parser.add_argument("--texts", type=int, default=500, help="how many SciFact abstracts")
    parser.add_argument("--only", action="append", default=[], help="parts of names, see above")
    parser.add_argument("--quick", action="store_true", help="a smoke run: smallest sizes only")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="a Python that has all that is needed: of the environment NAME, or of all others",
    )
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/eqxbert-benchmarks"))
    options = parser.parse_args()
    options.cache = options.cache.expanduser().resolve()
    named = [value if "=" in value else f"={value}" for value in options.python]
    options.python = dict(value.split("=", 1) for value in named)
    if options.quick:
        options.rounds, options.texts = QUICK_ROUNDS, QUICK_TEXTS
    return options


def make_plan(options: argparse.Namespace, record: Record) -> Plan:
    """The cells in the order they are measured, each with the peers that take part."""
    if options.device == "cpu":
        cells = cpu_cells(options, record)
    elif options.quick:
        cells = gpu_cells(GPU_MODELS[:1], SHAPES[1:2])
    else:
        cells = gpu_cells(GPU_MODELS, GPU_SHAPES)
    plan = [(cell, peers_of(cell, options, record)) for cell in cells]
    return [(cell, peers) for cell, peers in plan if peers]


def cpu_cells(options: argparse.Namespace, record: Record) -> list[Cell]:
    cells = forward_cells(SHAPES[:1] if options.quick else SHAPES)
    cells += [] if options.quick else train_cells()
    cells += [] if options.quick else compile_cells()
    cells += latency_cells()
    try:
        cells += encode_cells(QUICK_TEXTS if options.quick else None, options.texts)
    except UnavailableError as reason:
        record.leave_out("encode", "everywhere", reason)
    return cells


def peers_of(cell: Cell, options: argparse.Namespace, record: Record) -> list[Peer]:
    """The peers that `--only` asks for in a cell, less those that cannot do it."""
    able = []
    for peer in PEERS:
        name = f"{cell.name}/{peer.name}"
        if not all(any(part in name for part in only.split(",")) for only in options.only):
            continue
        lacking = [it for it in (options.device, cell.kind, cell.dtype) if it in peer.lacks]
        for it in lacking:
            record.leave_out(peer.name, it, peer.lacks[it])
        if not lacking:
            able.append(peer)
    return able


def make_models(
    plan: Plan, environments: Environments, options: argparse.Namespace, record: Record
) -> dict[str, Path]:
    """Returns the folders of the plan's models, with an ONNX file where a peer reads one."""
    onnx = any(peer.reads_onnx for _, peers in plan for peer in peers)
    folders = {}
    for model in sorted({cell.model for cell, _ in plan}):
        what = model
        try:
            folders[model] = make_model(model, environments, options.cache)
            if onnx:
                what = f"{model} as ONNX"
                add_onnx(folders[model], environments)
        except UnavailableError as reason:
            record.leave_out(what, "everywhere", reason)
    return folders


def take_turns(
    plan: Plan,
    models: dict[str, Path],
    environments: Environments,
    options: argparse.Namespace,
    record: Record,
) -> None:
    """Measures cell by cell, with all peers at work: the machine may slow down and recover."""
    peers = [peer for peer in PEERS if any(peer in peers for _, peers in plan)]
    engines = {peer.name: start_engine(peer, environments, options, record) for peer in peers}
    try:
        for cell, peers in plan:
            running = [engine for peer in peers if (engine := engines[peer.name]) is not None]
            finish_cell(cell, measure_cell(cell, models, running, options, record), record)
    finally:
        for engine in engines.values():
            if engine is not None:
                engine.close()


def one_after_another(
    plan: Plan,
    models: dict[str, Path],
    environments: Environments,
    options: argparse.Namespace,
    record: Record,
) -> None:
    """Measures peer by peer, each with all of a GPU's memory."""
    results: dict[str, dict[str, Result]] = {cell.name: {} for cell, _ in plan}
    for peer in PEERS:
        cells = [cell for cell, peers in plan if peer in peers]
        engine = start_engine(peer, environments, options, record) if cells else None
        if engine is None:
            continue
        try:
            for cell in cells:
                results[cell.name] |= measure_cell(cell, models, [engine], options, record)
                record.cells = results  # not yet compared; but a long run may be interrupted
                record.write()
        finally:
            engine.close()
    for cell, _ in plan:
        finish_cell(cell, results[cell.name], record)


def start_engine(
    peer: Peer, environments: Environments, options: argparse.Namespace, record: Record
) -> Engine | None:
    try:
        python = environments.python_of(peer.environment)
        log = options.cache / "logs" / f"{peer.name}.log"
        engine = Engine(peer, python, environ(options.threads, options.device), log)
    except UnavailableError as reason:
        record.leave_out(peer.name, "everywhere", reason)
        return None
    record.versions[peer.name] = engine.versions
    return engine


def measure_cell(
    cell: Cell,
    models: dict[str, Path],
    engines: list[Engine],
    options: argparse.Namespace,
    record: Record,
) -> dict[str, Result]:
    workload = Workload(
        kind=cell.kind,
        model=str(models[cell.model]),
        dtype=cell.dtype,
        device=options.device,
        threads=options.threads,
        shape=cell.shape,
        texts=cell.texts,
    )
    results, failures = measure(workload, engines, options.rounds)
    for name, reason in failures.items():
        record.leave_out(name, cell.name, reason)
    return results


def finish_cell(cell: Cell, results: dict[str, Result], record: Record) -> None:
    results, differing = compare(results, TOLERANCE[cell.dtype])
    for name, reason in differing.items():
        record.leave_out(name, cell.name, reason)
    record.cells[cell.name] = results
    record.write()  # after every cell: a long run may be interrupted
    print(rows(cell, results), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
