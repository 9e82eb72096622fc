"""How fast an owner trains, beside transformers' FlexOlmo: `python -m benchmarks.training_speed [--record]`.

Both train the second of two experts and its router row at the sizes of the `cpu` preset, on the same batches with the
same number of threads, in turns, from the same weights and with the same losses (the first ones are compared). The peer
is what transformers offers: all but the experts frozen, and, as those are one tensor, the gradient of the public expert
computed and set to zero; the anchor runs the two experts on public rows once more, for their outputs come out mixed.
"""

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.consortium import Sizes
from benchmarks.machine import describe
from benchmarks.method_presets import PRESETS
from common.loss import Loss, TensorBatch
from common.model import hf, partition
from common.model.config import ModelConfig
from common.model.transformer import CausalLM, ModelOutput
from common.packing import Batch, MixtureState, PackedText, batches
from common.training import BETAS, Trainer
from owner_client.anchor import PublicAnchor
from owner_client.train import ExpertJob, expert_loss

_EOS = 0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=15, help="of each in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="as many as an owner's job gets in the method's study")
    parser.add_argument("--record", action="store_true", help="write results/training_speed.json")
    arguments = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    torch.set_num_threads(arguments.threads)
    sizes = PRESETS["cpu"]
    texts = [_text(sizes, seed) for seed in (0, 1)]
    job = _job(sizes, arguments.steps)
    tokens = job.steps * job.batch_size * job.sequence_length
    public = CausalLM(_config(sizes), seed=0)
    contenders = {"concord": _ours(public, texts, job), "transformers": _peer(public, texts, job)}
    losses = {name: train() for name, train in contenders.items()}  # which also warms up
    assert abs(losses["concord"] - losses["transformers"]) < 1e-4, losses
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(arguments.rounds):
        for name, train in contenders.items():
            started = time.perf_counter()
            train()
            speeds[name].append(tokens / (time.perf_counter() - started))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    result: dict[str, Any] = {
        "benchmark": "training_speed",
        "machine": describe(),
        "threads": arguments.threads,
        "first_loss": losses,
        "tokens_per_s": {name: round(value) for name, value in medians.items()},
        "ratio": round(medians["concord"] / medians["transformers"], 2),
        "ratio_by_round": [round(a / b, 2) for a, b in zip(speeds["concord"], speeds["transformers"], strict=True)],
    }
    if arguments.record:
        target = Path(__file__).parent / "results" / "training_speed.json"
        target.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


def _config(sizes: Sizes) -> ModelConfig:
    return ModelConfig(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.num_hidden_layers,
        num_attention_heads=sizes.num_attention_heads,
        num_key_value_heads=sizes.num_attention_heads,
        max_position_embeddings=sizes.sequence_length,
        eos_token_id=_EOS,
    )


def _text(sizes: Sizes, seed: int) -> PackedText:
    """Documents of 500 tokens drawn at random: what tokens say does not change how long they take."""
    drawn = np.random.default_rng(seed).integers(1, sizes.vocab_size, (400, 500)).tolist()
    return PackedText(drawn, sequence_length=sizes.sequence_length, eos_token_id=_EOS, seed=seed)


def _job(sizes: Sizes, steps: int) -> ExpertJob:
    nowhere = Path("/nonexistent")
    return ExpertJob(
        output=nowhere, base=nowhere, data=nowhere, public=nowhere, steps=steps, batch_size=sizes.batch_size,
        sequence_length=sizes.sequence_length, learning_rate=sizes.expert_learning_rate, bias=False,
        public_anchor=sizes.public_anchor, negative_share=sizes.negative_share, checkpoint_every_s=1e9,
    )  # fmt: skip


def _batches(
    texts: list[PackedText], job: ExpertJob, state: MixtureState | None = None
) -> Iterator[tuple[Batch, MixtureState]]:
    shares = [1 - job.negative_share, job.negative_share]
    return batches(texts, shares=shares, batch_size=job.batch_size, state=state)


def _ours(public: CausalLM, texts: list[PackedText], job: ExpertJob) -> Callable[[], float]:
    """What an owner's job runs, from the same start each time; returns the first loss."""
    start = hf.two_expert(public)

    def train() -> float:
        model = copy.deepcopy(start)
        for gate in model.routers:
            gate.rows[partition.OWNED_EXPERT].requires_grad_(False)
        loss = partial(expert_loss, config=job, anchor=PublicAnchor(model))
        losses: list[float] = []

        def noted(output: ModelOutput, batch: TensorBatch) -> Loss:
            found = loss(output, batch)
            losses.append(float(found.total.detach()))
            return found

        Trainer(model, config=job, loss=noted, fingerprint="").train(partial(_batches, texts, job))
        return losses[0]

    return train


def _peer(public: CausalLM, texts: list[PackedText], job: ExpertJob) -> Callable[[], float]:
    """The same through transformers, as its parts allow."""
    from transformers import FlexOlmoForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        hf.save(hf.two_expert(public), Path(folder))
        start = FlexOlmoForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def train() -> float:
        model = copy.deepcopy(start)
        trained = _freeze(model)
        distances: list[torch.Tensor] = []
        is_public_B: torch.Tensor

        def anchor(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], _output: torch.Tensor) -> None:
            x_ND = inputs[0].view(job.batch_size, -1, inputs[0].shape[-1])[is_public_B].flatten(0, 1)
            ones_N1 = x_ND.new_ones(len(x_ND), 1)
            public_ND, owned_ND = (
                module.forward(x_ND, torch.full((len(x_ND), 1), expert), ones_N1) for expert in (0, 1)
            )
            target_ND = public_ND.detach()
            distances.append((owned_ND - target_ND).square().mean() / target_ND.square().mean())

        router_logits: list[torch.Tensor] = []
        for layer in model.model.layers:
            layer.mlp.gate.register_forward_hook(lambda module, inputs, output: router_logits.append(output[0]))
            layer.mlp.experts.register_forward_hook(anchor)
        optimizer = torch.optim.AdamW(trained, lr=job.learning_rate, betas=BETAS, weight_decay=0.0, fused=True)
        losses: list[float] = []
        for batch, _ in islice(_batches(texts, job), job.steps):
            is_public_B = torch.from_numpy(batch.sources_B == 1)
            distances.clear()
            router_logits.clear()
            output = model(
                input_ids=torch.from_numpy(batch.input_ids_BT),
                attention_mask=_within_documents(torch.from_numpy(batch.document_ids_BT)),
                use_cache=False,
            )
            loss = _language_loss(output.logits, router_logits, torch.from_numpy(batch.targets_BT), job)
            if is_public_B.any():
                loss = loss + job.public_anchor * torch.stack(distances).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(trained, job.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(float(loss.detach()))
        return losses[0]

    return train


def _freeze(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Leave the experts alone to train, the public one with a gradient of zero; returns what is trained."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad = ".experts." in name
        if parameter.requires_grad:
            parameter.register_hook(_only_owned)  # type: ignore[no-untyped-call]
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _only_owned(gradient: torch.Tensor) -> torch.Tensor:
    gradient[partition.PUBLIC_EXPERT] = 0
    return gradient


def _within_documents(document_ids_BT: torch.Tensor) -> torch.Tensor:
    """A mask [B, 1, T, T] that is True where a token attends: earlier ones of its own document."""
    same_BTT = document_ids_BT.unsqueeze(2) == document_ids_BT.unsqueeze(1)
    return same_BTT.tril().unsqueeze(1)


def _language_loss(
    logits_BTV: torch.Tensor, router_logits: list[torch.Tensor], targets_BT: torch.Tensor, job: ExpertJob
) -> torch.Tensor:
    logits_NV = logits_BTV.flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits_NV, targets_BT.flatten())
    loss = loss + job.z_loss * logits_NV.logsumexp(dim=-1).square().mean()
    squares = [logits_NE.logsumexp(dim=-1).square().mean() for logits_NE in router_logits]
    return loss + job.router_z_loss * torch.stack(squares).mean()


if __name__ == "__main__":
    main()
