"""Training: data, losses, optimizers, the compiled step, and the loop around it."""

from .batches import batch_indices as batch_indices, prefetch as prefetch
from .checkpoint import Checkpoints as Checkpoints
from .contrastive import (
    contrastive_loss as contrastive_loss,
    similarity_loss as similarity_loss,
)
from .fit import FitResult as FitResult, fit as fit
from .lora import (
    LoRALinear as LoRALinear,
    add_lora as add_lora,
    lora_filter as lora_filter,
    merge_lora as merge_lora,
    remove_lora as remove_lora,
)
from .lora_files import load_lora as load_lora, save_lora as save_lora
from .loss import (
    Batch as Batch,
    LossFunction as LossFunction,
    MeanLoss as MeanLoss,
    model_loss as model_loss,
)
from .masking import continuation_pieces as continuation_pieces, mask_tokens as mask_tokens
from .optimizer import (
    Optimizer as Optimizer,
    adamw as adamw,
    freeze as freeze,
    learning_rate_schedule as learning_rate_schedule,
)
from .packing import (
    Packing as Packing,
    pack_sequences as pack_sequences,
    plan_packing as plan_packing,
)
from .precision import LossScale as LossScale, for_compute as for_compute
from .sentence_pairs import (
    SentencePair as SentencePair,
    pair_inputs as pair_inputs,
    sentence_pairs as sentence_pairs,
)
from .step import (
    TrainState as TrainState,
    make_eval_step as make_eval_step,
    make_train_step as make_train_step,
)
