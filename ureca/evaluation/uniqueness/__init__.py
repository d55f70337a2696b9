"""Whether captions single out their regions, which n-gram metrics cannot tell."""

from ureca.evaluation.uniqueness.colour_words import ColourWords
from ureca.evaluation.uniqueness.duplicates import DuplicateSettings, measure_duplicates
from ureca.evaluation.uniqueness.encoders import COLOUR_WORDS, DualEncoder, DualEncoderSettings, ImageTextEncoder
from ureca.evaluation.uniqueness.listening import Heard, Question, distractors, listen, listener_measures
from ureca.evaluation.uniqueness.retrieval import Retrieved, retrieval_measures, retrieve
from ureca.evaluation.uniqueness.scenes import Resolution, resolution, resolution_measures

__all__ = [
    "COLOUR_WORDS",
    "ColourWords",
    "DualEncoder",
    "DualEncoderSettings",
    "DuplicateSettings",
    "Heard",
    "ImageTextEncoder",
    "Question",
    "Resolution",
    "Retrieved",
    "distractors",
    "listen",
    "listener_measures",
    "measure_duplicates",
    "resolution",
    "resolution_measures",
    "retrieval_measures",
    "retrieve",
]
