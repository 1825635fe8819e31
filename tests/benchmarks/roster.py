"""Who is measured: every peer, the pinned requirements it runs with and what it cannot do."""

from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Environment:
    """What to install, and additionally for `--device gpu`."""

    name: str
    requirements: tuple[str, ...]
    gpu_requirements: tuple[str, ...] = ()
    min_python: tuple[int, int] = (3, 11)


@dataclass(frozen=True)
class Peer:
    """An engine to measure.

    **Arguments:** `lacks` maps a kind of workload, a dtype or a device to the reason why the peer
    has no part in it; `options` are those of its script, which has its name if `script_name` is
    None.
    """

    name: str
    environment: Environment
    lacks: dict[str, str] = field(default_factory=dict)
    reads_onnx: bool = False
    script_name: str | None = None
    options: tuple[str, ...] = ()

    @property
    def command(self) -> tuple[str, ...]:
        name = (self.script_name or self.name).replace("-", "_")
        return str(Path(__file__).parent / "peers" / f"{name}_peer.py"), *self.options


BASELINE = "eqxbert"

CHECKOUT = Environment("eqxbert", ("--editable", f"{ROOT}[text]"), ("jax[cuda13]",))
TORCH = Environment(
    "torch",
    (
        "torch==2.13.0",
        "transformers==5.23.0",
        "sentence-transformers==6.2.0",
        "onnx==1.23.2",  # for the models' ONNX files
    ),
)
FLAX = Environment(
    "flax", ("transformers==4.57.6", "flax==0.12.8", "jax==0.10.2"), ("jax[cuda13]==0.10.2",)
)
ONNXRUNTIME = Environment("onnxruntime", ("onnxruntime==1.32.0", "tokenizers==0.23.3"))
OPENVINO = Environment("openvino", ("openvino==2026.4.1", "tokenizers==0.23.3"))
EQX_ZOO = Environment(
    "eqx-zoo",
    ("eqx-zoo==0.3.5", "jax==0.12.0.1", "tokenizers==0.23.3"),
    ("jax[cuda13]==0.12.0.1",),
    min_python=(3, 12),
)

ON_CPU = {"gpu": "this build of it runs on the CPU"}

NO_TRAINING = {"train": "does not train"}
NO_COMPILING = dict.fromkeys(("compile_forward", "compile_train"), "runs without compiling")

PEERS = (
    Peer(BASELINE, CHECKOUT),
    Peer("pytorch", TORCH, {"encode": "measured as sentence-transformers"} | NO_COMPILING),
    Peer(
        "torch-compile",
        TORCH,
        {"cpu": "measured on GPUs"},
        script_name="pytorch",
        options=("--compile",),
    ),
    Peer(
        "sentence-transformers",
        TORCH,
        {"forward": "measured as pytorch", "train": "measured as pytorch"} | NO_COMPILING,
    ),
    Peer("flax", FLAX, {"encode": "has no sentence encoder"}),
    Peer(
        "onnxruntime",
        ONNXRUNTIME,
        ON_CPU | NO_TRAINING | NO_COMPILING | {"bfloat16": "has no bfloat16 matrix product on x86"},
        reads_onnx=True,
    ),
    Peer("openvino", OPENVINO, ON_CPU | NO_TRAINING | NO_COMPILING, reads_onnx=True),
    Peer("eqx-zoo", EQX_ZOO, {"train": "has no masked language model"} | NO_COMPILING),
)
