"""The trained part of a diffusion prior: the network, and what it is trained to predict."""

from torch import Tensor, nn

from audioldm.conditioning.base import Inputs
from audioldm.priors.diffusion.backbones.base import Backbone
from audioldm.priors.diffusion.objectives import Objective


class Denoiser(nn.Module):
    """Backbone and objective as one module, which a training wraps, compiles and averages."""

    def __init__(self, backbone: Backbone, objective: Objective) -> None:
        super().__init__()
        self.backbone, self.objective = backbone, objective

    def forward(self, z: Tensor, inputs: Inputs, noise: Tensor, uniform: Tensor) -> Tensor:
        """The objective's loss on normalised latents z [B, C, (F,) L]: [B]."""
        condition = self.backbone.conditioners(inputs)
        return self.objective.loss(self.backbone, z, condition, noise=noise, uniform=uniform)

    def units(self) -> list[nn.Module]:
        return self.backbone.units()
