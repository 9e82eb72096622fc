"""What keeps an owner's expert harmless outside its own text: on public text it is held to the public expert's output.

In a release every expert gets a share of text that is not its own, for a router that sees one hidden state cannot
always tell. On the public rows of a batch the anchor adds the squared distance between the two experts' outputs, in
units of the public output's mean square, averaged over layers. Both outputs are computed anyway, so it costs next to
nothing; where the experts agree, a wrong choice between them costs nothing either.

Shapes: N tokens of a batch, D hidden_size.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from common.model.moe import MixtureOfExperts
from common.model.partition import OWNED_EXPERT, PUBLIC_EXPERT
from common.model.transformer import CausalLM


class PublicAnchor:
    """Reads the outputs of both experts of a two-expert model, layer by layer, as the model runs."""

    def __init__(self, model: CausalLM) -> None:
        layers = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
        self._outputs: list[dict[int, Tensor]] = [{} for _ in layers]
        for outputs, layer in zip(self._outputs, layers, strict=True):
            for index in (PUBLIC_EXPERT, OWNED_EXPERT):
                layer.experts[index].register_forward_hook(_keep(outputs, index))

    def distance(self, is_public_B: Tensor) -> Tensor:
        """The penalty of the newest forward pass over rows [B], of which those that are True are public; a scalar."""
        if not bool(is_public_B.any()):
            return torch.zeros((), device=is_public_B.device)
        return torch.stack([_distance(outputs, is_public_B) for outputs in self._outputs]).mean()


def _distance(outputs: dict[int, Tensor], is_public_B: Tensor) -> Tensor:
    public_ND, owned_ND = (
        outputs[index].view(len(is_public_B), -1)[is_public_B].float() for index in (PUBLIC_EXPERT, OWNED_EXPERT)
    )
    target_ND = public_ND.detach()
    return (owned_ND - target_ND).square().mean() / target_ND.square().mean()


def _keep(outputs: dict[int, Tensor], index: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        outputs[index] = output

    return hook
