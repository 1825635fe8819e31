"""Training: the optimizer, the compiled step, and what they work on."""

from .checkpoint import Checkpoints as Checkpoints
from .fit import FitResult as FitResult, fit as fit
from .loss import (
    Batch as Batch,
    LossFunction as LossFunction,
    MeanLoss as MeanLoss,
    model_loss as model_loss,
)
from .optimizer import (
    Optimizer as Optimizer,
    adamw as adamw,
    freeze as freeze,
    learning_rate_schedule as learning_rate_schedule,
)
from .precision import LossScale as LossScale, for_compute as for_compute
from .step import (
    TrainState as TrainState,
    make_eval_step as make_eval_step,
    make_train_step as make_train_step,
)
