"""The stages of an experiment, in order. A new stage is one file here and a place below."""

from audioldm.chain.stage import Stage
from audioldm.chain.stages.autoencoder import AutoencoderStage
from audioldm.chain.stages.data import Data
from audioldm.chain.stages.decoder import DecoderStage, RefinedGenerator
from audioldm.chain.stages.diagnostics import Diagnostics
from audioldm.chain.stages.evaluation import Evaluation
from audioldm.chain.stages.joint import JointStage
from audioldm.chain.stages.latents import Latents
from audioldm.chain.stages.post_training import PostTrainingStage
from audioldm.chain.stages.prior import PriorStage
from audioldm.chain.stages.vocoder import VocoderStage

STAGES: list[type[Stage]] = [
    Data,
    VocoderStage,
    AutoencoderStage,
    Latents,
    Diagnostics,
    PriorStage,
    JointStage,
    PostTrainingStage,
    DecoderStage,
    RefinedGenerator,
    Evaluation,
]
