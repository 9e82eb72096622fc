"""The owner's job: its documents and the public model to an expert, with everything that is shared proven unchanged.

`python -m owner_client.train JOB.json` trains the second of two experts and its router rows beside the frozen public
expert, top-2 of 2 (arXiv 2507.07024, section 3.3.1). Each batch holds a share of public documents as negatives: they
keep the row from drifting to "always mine", so that experts can be put side by side with nothing trained afterwards.
Two terms act on the router: the language loss through its probabilities, and a classification loss (own against public
text) that makes the difference of the two logits a log density ratio. Ratios against the same public text compare
across owners who never meet. A bias, at most 0, acts along the base's bias direction and is folded into the row at the
end.

Output: `expert.safetensors` with exactly the tensors an owner may send, and `training.json`.

Shapes: B batch, T sequence, E experts.
"""

import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor

from common import training
from common.data import Batch, MixtureState, PackedText, batches, read_split
from common.errors import JobFailedError
from common.job import StopSignal
from common.model import hf, partition
from common.model.partition import OWNED_EXPERT, PUBLIC_EXPERT
from common.model.router_rows import PublicRouter
from common.model.transformer import CausalLM, ModelOutput
from common.tokenizer import Tokenizer
from common.training import Loss, TensorBatch, Trainer, TrainingConfig
from owner_client.router_init import initialise_routers

EXPERT_FILE: Final = "expert.safetensors"

_OWN, _PUBLIC = 0, 1
"""Index of a batch row's source, in `Batch.sources_B`."""


class ExpertJob(TrainingConfig, frozen=True, extra="forbid"):
    """The job's JSON file."""

    base: Path
    """The public model's directory."""
    data: Path
    """Folder or file of the owner's documents; its train split is read."""
    public: Path
    """Folder or file of public documents, which every owner has; its train split is read."""
    negative_share: float = Field(default=0.3, ge=0, lt=1)
    """Share of each batch that is public text."""
    router_loss: float = Field(default=0.1, ge=0)
    """Weight of the classification loss on router logits; at 0 the language loss alone trains rows, as in the paper."""
    router_prior: float = Field(default=0.5, gt=0, lt=1)
    """How likely own text is taken to be; less makes the expert more reluctant everywhere."""
    router_sequences: int = Field(default=128, ge=1)
    """How many sequences of own and of public text the router rows start from."""


def main(arguments: list[str]) -> int:
    """Run the job; returns the exit status."""
    return training.run_job(arguments, ExpertJob, run)


def run(config: ExpertJob, stop: StopSignal) -> dict[str, object]:
    """Make the expert's directory, or find that an earlier run made it; returns what `training.json` records.

    Raises:
        JobFailedError: training changed something that is not the owner's; nothing is written.
    """
    own_documents, public_documents = read_split(config.data, "train"), read_split(config.public, "train")
    public_model = hf.load(config.base, device=config.device, dtype=torch.float32)
    base_digest = training.digest_tensors(public_model.state_dict())
    fingerprint = training.fingerprint(
        config,
        base=base_digest,
        data=training.digest_texts(d.text for d in own_documents),
        public=training.digest_texts(d.text for d in public_documents),
    )
    if (record := training.finished(config.output, fingerprint)) is not None:
        return record
    tokens = Tokenizer.load(config.base)
    own, public = (
        PackedText(
            tokens.encode_all([document.text for document in documents]),
            sequence_length=config.sequence_length,
            eos_token_id=tokens.eos_token_id,
            seed=config.seed,
            name=str(path),
        )
        for path, documents in ((config.data, own_documents), (config.public, public_documents))
    )
    model = _two_expert(config, public_model, own=own, public=public)
    frozen = training.digest_tensors(_frozen(model))
    trainer = Trainer(
        model,
        config=config,
        loss=partial(expert_loss, config=config),
        fingerprint=fingerprint,
        after_step=partial(_clamp_biases, model),
        report=training.reporter("train"),
        stop=stop,
    )
    result = trainer.train(partial(_batches, own, public, config))
    if training.digest_tensors(_frozen(model)) != frozen:
        raise JobFailedError("training changed parameters that are not the owner's; the expert is not written")
    record = {
        "fingerprint": fingerprint,
        "base_sha256": base_digest,
        "frozen_sha256": frozen,
        "own_tokens": own.num_tokens,
        "public_tokens": public.num_tokens,
        "biases": [float(router.biases[str(OWNED_EXPERT)]) for router in model.routers],
        **asdict(result),
        "config": config.model_dump(mode="json"),
    }
    training.publish(config.output, partial(_write, model, record), checkpoint=config.checkpoint_folder)
    return record


def expert_loss(output: ModelOutput, batch: TensorBatch, *, config: ExpertJob) -> Loss:
    """The language loss, and the router's classification loss averaged over layers."""
    language = training.language_loss(output, batch, z_loss=config.z_loss, router_z_loss=config.router_z_loss)
    is_own_B = batch.sources_B == _OWN
    if config.router_loss == 0 or is_own_B.all():
        return language
    weights_B = _class_weights(is_own_B, prior=config.router_prior)
    weights_BT = weights_B[:, None].expand_as(batch.input_ids_BT)
    targets_BT = is_own_B[:, None].float().expand_as(batch.input_ids_BT)
    terms = [
        F.binary_cross_entropy_with_logits(_log_ratio(logits_BTE), targets_BT, weight=weights_BT)
        for logits_BTE in output.router_logits
    ]
    return Loss(language.total + config.router_loss * torch.stack(terms).mean(), language.cross_entropy)


def _log_ratio(logits_BTE: Tensor) -> Tensor:
    return logits_BTE[..., OWNED_EXPERT].float() - logits_BTE[..., PUBLIC_EXPERT].float()


def _class_weights(is_own_B: Tensor, *, prior: float) -> Tensor:
    """A weight for each row, so that own rows weigh `prior` together and public rows the rest, and the mean is 1."""
    share = is_own_B.float().mean()
    return torch.where(is_own_B, prior / share, (1 - prior) / (1 - share).clamp_min(1e-9))


def _two_expert(config: ExpertJob, public_model: CausalLM, *, own: PackedText, public: PackedText) -> CausalLM:
    model = hf.two_expert(public_model)
    sizes = public_model.config
    router = PublicRouter.load(config.base, num_hidden_layers=sizes.num_hidden_layers, hidden_size=sizes.hidden_size)
    initialise_routers(
        model,
        public_model,
        router,
        own=own,
        public=public,
        num_sequences=config.router_sequences,
        batch_size=config.batch_size,
        device=config.device,
    )
    return model


def _frozen(model: CausalLM) -> dict[str, Tensor]:
    """All that is not the owner's: parameters by name, and the bias directions."""
    parameters = {n: p for n, p in model.named_parameters() if partition.owner_of(n) != OWNED_EXPERT}
    directions = {f"{i}": r.bias_direction for i, r in enumerate(model.routers) if r.bias_direction is not None}
    return {**parameters, **directions}


def _clamp_biases(model: CausalLM) -> None:
    """A bias may make its expert more reluctant, never more eager."""
    with torch.no_grad():
        for router in model.routers:
            router.biases[str(OWNED_EXPERT)].clamp_(max=0.0)


def _batches(
    own: PackedText, public: PackedText, config: ExpertJob, state: MixtureState | None = None
) -> Iterator[tuple[Batch, MixtureState]]:
    shares = [1 - config.negative_share, config.negative_share]
    return batches([own, public], shares=shares, batch_size=config.batch_size, state=state)


def _write(model: CausalLM, record: dict[str, object], directory: Path) -> None:
    save_file(expert_tensors(model), directory / EXPERT_FILE, metadata={"format": "pt"})
    training.write_record(directory, record)


def expert_tensors(model: CausalLM) -> dict[str, Tensor]:
    """What an owner may send, by name: the projections of its expert, and its rows with biases folded in."""
    sizes = model.config
    expected = partition.expert_tensors(
        num_hidden_layers=sizes.num_hidden_layers,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        dtype="F32",
    )
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    for layer, router in enumerate(model.routers):
        tensors[partition.router_row(layer, OWNED_EXPERT)] = router.effective_row(OWNED_EXPERT)
    return {name: tensors[name].detach().cpu().contiguous() for name in expected}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
