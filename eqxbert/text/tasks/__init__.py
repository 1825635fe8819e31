"""Fine-tuning from text: examples in, batches, predictions and metrics out."""

from .entities import Entity as Entity, entities as entities, entity_scores as entity_scores
from .features import Features as Features, TrainBatches as TrainBatches
from .multiple_choice import ChoiceExample as ChoiceExample, MultipleChoice as MultipleChoice
from .question_answering import (
    Answer as Answer,
    QuestionAnswering as QuestionAnswering,
    QuestionExample as QuestionExample,
)
from .sentence_embedding import (
    PairBatches as PairBatches,
    PairExample as PairExample,
    SentenceEmbedding as SentenceEmbedding,
)
from .sequence_classification import (
    SequenceClassification as SequenceClassification,
    TextExample as TextExample,
)
from .squad import answer_f1 as answer_f1, exact_match as exact_match
from .task import Task as Task
from .token_classification import (
    TokenClassification as TokenClassification,
    WordsExample as WordsExample,
)
