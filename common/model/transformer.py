"""The OLMo 2 decoder (arXiv 2501.00656), dense or with FlexOlmo's feed-forward: plain modules, no parallelism.

RMSNorm after attention and after the feed-forward (not before), query and key normalised over the whole projection,
rotary positions, SwiGLU, an untied head. Parameter names are Hugging Face's on-disk names (see `partition.py`).

Shapes: B batch, T sequence, D hidden_size, V vocab_size, E experts, H heads, R head width, N tokens.
"""

from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.model.config import ModelConfig
from common.model.moe import FeedForward, Linear, MixtureOfExperts, Router

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_INITIAL_STD: Final = 0.02


class ModelOutput(NamedTuple):
    """`logits_BTV` of the next token, and each layer's router logits [B, T, E] (none in a dense model)."""

    logits_BTV: Tensor
    router_logits: tuple[Tensor, ...]


class _Places(NamedTuple):
    """Where tokens stand: rotary cosine and sine [T, R], and who may attend to whom: all before it (neither is given),
    what the mask says, or all before it in its stretch, whose lengths add up to B * T.
    """

    cos_TR: Tensor
    sin_TR: Tensor
    mask_B1TT: Tensor | None = None
    lengths: list[int] | None = None


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, in fp32."""

    def __init__(self, size: int, *, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, dtype=dtype))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] -> [..., size]."""
        normed = F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps)
        return normed.to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention with grouped key and value heads."""

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, config.hidden_size, dtype=dtype)
        self.k_proj = Linear(config.hidden_size, kv_size, dtype=dtype)
        self.v_proj = Linear(config.hidden_size, kv_size, dtype=dtype)
        self.o_proj = Linear(config.hidden_size, config.hidden_size, dtype=dtype)
        self.q_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype)
        self.k_norm = RMSNorm(kv_size, eps=config.rms_norm_eps, dtype=dtype)
        self.grouped = config.num_key_value_heads != config.num_attention_heads

    def forward(self, x_BTD: Tensor, places: _Places) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        q = _rotate(self._heads(self.q_norm(self.q_proj(x_BTD))), places)
        k = _rotate(self._heads(self.k_norm(self.k_proj(x_BTD))), places)
        v = self._heads(self.v_proj(x_BTD))
        attend = partial(F.scaled_dot_product_attention, enable_gqa=self.grouped)
        if places.lengths is not None:
            y_BHTR = _attend_within(attend, q, k, v, places.lengths)
        else:
            y_BHTR = attend(q, k, v, attn_mask=places.mask_B1TT, is_causal=places.mask_B1TT is None)
        return cast(Tensor, self.o_proj(y_BHTR.transpose(1, 2).flatten(2)))

    def _heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.view(*x_BTD.shape[:2], -1, self.head_dim).transpose(1, 2)


class Block(nn.Module):
    """One decoder layer: attention, then feed-forward, each normalised before it is added to the residual."""

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.self_attn = Attention(config, dtype=dtype)
        self.mlp = (MixtureOfExperts if config.num_experts else FeedForward)(config, dtype=dtype)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype)
        self.post_feedforward_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype)

    def forward(self, x_BTD: Tensor, places: _Places) -> tuple[Tensor, Tensor, Tensor | None]:
        """[B, T, D] -> residual after the block, the input its feed-forward saw, router logits (None if dense)."""
        inputs_BTD = x_BTD + self.post_attention_layernorm(self.self_attn(x_BTD, places))
        if isinstance(self.mlp, MixtureOfExperts):
            y_BTD, router_logits = self.mlp(inputs_BTD)
        else:
            y_BTD, router_logits = self.mlp(inputs_BTD), None
        return inputs_BTD + self.post_feedforward_layernorm(y_BTD), inputs_BTD, router_logits


class Embedding(nn.Embedding):
    """One vector a token, given values by `initialise` or a checkpoint, not by its constructor."""

    def reset_parameters(self) -> None:
        """Draw nothing: it would be thrown away, and would move the global random state."""


class Decoder(nn.Module):
    """Embedding, blocks and the last norm: everything but the head."""

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, dtype=dtype)
        self.layers = nn.ModuleList(Block(config, dtype=dtype) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype)


class CausalLM(nn.Module):
    """An OLMo 2 or FlexOlmo language model, initialised from `seed` (on the meta device: not at all).

    Args:
        config: What it computes; parameters are made in `config.dtype` on torch's current default device.
        seed: The same seed gives the same parameters on every device.
    """

    def __init__(self, config: ModelConfig, *, seed: int = 0) -> None:
        super().__init__()
        dtype = DTYPES[config.dtype]
        self.config = config
        self.model = Decoder(config, dtype=dtype)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, dtype=dtype)
        initialise(self, seed=seed)

    @property
    def routers(self) -> tuple[Router, ...]:
        """The router of each layer; none in a dense model."""
        return tuple(module for module in self.modules() if isinstance(module, Router))

    def forward(self, input_ids_BT: Tensor, *, document_ids_BT: Tensor | None = None) -> ModelOutput:
        """Logits of the token after each position.

        Args:
            input_ids_BT: Token ids [B, T].
            document_ids_BT: For packed sequences, an integer [B, T] that changes where a new document begins: tokens
                attend only within their document, so its logits are those it has alone.
        """
        x_BTD, router_logits = self.hidden_states(input_ids_BT, document_ids_BT=document_ids_BT)
        return ModelOutput(self.lm_head(x_BTD), router_logits)

    def hidden_states(
        self, input_ids_BT: Tensor, *, document_ids_BT: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As `forward`, but what the head sees [B, T, D] instead of logits."""
        x_BTD = self.model.embed_tokens(input_ids_BT)
        places = self._places(x_BTD, document_ids_BT)
        router_logits = []
        for layer in self.model.layers:
            x_BTD, _, logits_BTE = layer(x_BTD, places)
            if logits_BTE is not None:
                router_logits.append(logits_BTE)
        return self.model.norm(x_BTD), tuple(router_logits)

    def feed_forward_inputs(self, input_ids_BT: Tensor, *, document_ids_BT: Tensor | None = None) -> tuple[Tensor, ...]:
        """What each layer's feed-forward (and its router) sees: one [B, T, D] a layer."""
        x_BTD = self.model.embed_tokens(input_ids_BT)
        places = self._places(x_BTD, document_ids_BT)
        inputs = []
        for layer in self.model.layers:
            x_BTD, inputs_BTD, _ = layer(x_BTD, places)
            inputs.append(inputs_BTD)
        return tuple(inputs)

    def _places(self, x_BTD: Tensor, document_ids_BT: Tensor | None) -> _Places:
        # Rotary positions are relative, so documents that do not see one another may share one count.
        cos_TR, sin_TR = self._rotations(torch.arange(x_BTD.shape[1], device=x_BTD.device))
        if document_ids_BT is None:
            return _Places(cos_TR, sin_TR)
        stretches_BT = stretches(document_ids_BT)
        if stretches_BT.device.type == "cpu" and not torch.compiler.is_compiling():
            return _Places(cos_TR, sin_TR, lengths=torch.bincount(stretches_BT.flatten()).tolist())
        mask_B1TT = (stretches_BT[:, :, None] == stretches_BT[:, None, :]).tril().unsqueeze(1)
        return _Places(cos_TR, sin_TR, mask_B1TT)

    def _rotations(self, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        head_dim = self.config.head_dim
        exponents = torch.arange(0, head_dim, 2, device=positions_T.device, dtype=torch.float32) / head_dim
        angles = positions_T[:, None].float() * (1.0 / self.config.rope_theta**exponents)
        angles_TR = torch.cat((angles, angles), dim=-1)
        return angles_TR.cos(), angles_TR.sin()


def stretches(document_ids_BT: Tensor) -> Tensor:
    """Number [B, T] of the stretch of one document within one sequence that each token is in, counted from 0 on."""
    starts_BT = torch.ones_like(document_ids_BT, dtype=torch.bool)
    starts_BT[:, 1:] = document_ids_BT[:, 1:] != document_ids_BT[:, :-1]
    return starts_BT.flatten().cumsum(dim=0).view_as(document_ids_BT) - 1


def initialise(model: nn.Module, *, seed: int) -> None:
    """Norms 1, biases 0, everything else normal with standard deviation 0.02, as OLMo 2. The meta device is left alone.

    Drawn on the CPU in the order of `named_parameters`, so that a seed means the same model on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            continue
        with torch.no_grad():
            if name.endswith(("norm.weight",)):
                parameter.fill_(1.0)
            elif ".biases." in name:
                parameter.zero_()
            else:
                drawn = torch.empty(parameter.shape).normal_(std=_INITIAL_STD, generator=generator)
                parameter.copy_(drawn)


def _attend_within(attend: Callable[..., Tensor], q_BHTR: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """Causal attention [B, H, T, R] of each stretch by itself, for a processor that pays for what a mask hides."""
    num_rows, num_heads, num_tokens, head_dim = q_BHTR.shape
    stretch_by_stretch = zip(*(_cut(x, lengths) for x in (q_BHTR, k, v)), strict=True)
    y_HNR = torch.cat([attend(*qkv, is_causal=True) for qkv in stretch_by_stretch], dim=-2)[0]
    return y_HNR.view(num_heads, num_rows, num_tokens, head_dim).transpose(0, 1)


def _cut(x_BHTR: Tensor, lengths: list[int]) -> tuple[Tensor, ...]:
    """One [1, H, length, R] a stretch."""
    return torch.split(x_BHTR.transpose(0, 1).flatten(1, 2).unsqueeze(0), lengths, dim=2)


def _rotate(x_BHTR: Tensor, places: _Places) -> Tensor:
    """Turn each pair (i, i + R/2) of coordinates by its position's angle, in fp32."""
    x1, x2 = x_BHTR.chunk(2, dim=-1)
    turned = torch.cat((-x2, x1), dim=-1)
    return (x_BHTR * places.cos_TR + turned * places.sin_TR).to(x_BHTR.dtype)
