"""The owner's job: its documents and the public model to an expert, with everything that is shared proven unchanged.

`python -m owner_client.train JOB.json` trains the second of two experts beside the frozen public expert, top-2 of 2
(arXiv 2507.07024, section 3.3.1). Each batch holds a share of public documents as negatives, on which the expert is
held to the public expert's output (`anchor`). The expert's router rows start as log density ratios between own and
public text (`router_init`) and by default stay there: trained further beside one other expert, a row learns to tell
apart what the two experts below it put out, and in a release it then claims whatever a third owner's expert made. What
is trained of the router is a bias, at most 0, along the base's bias direction; at the end it is moved to where held-out
text is predicted best (`held_out_bias`) and folded into the row.

What the paper leaves out to see what it is worth can be left out here too: the public expert beside the owner's
(`coordinated`), the bias (`bias`), what rows start from (`router_start`); and rows may start as the paper's do, from an
embedder of the owner's choice (`embedder`).

Output: `expert.safetensors` with exactly the tensors an owner may send, and `training.json`.

Shapes: B batch, T sequence, E experts.
"""

import copy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final

import torch
from pydantic import Field, model_validator
from safetensors.torch import save_file
from torch import Tensor

from common import training, training_job
from common.data import Document, read_corpus, sample, set_unseen_aside
from common.embedder import Embedder, directory_digest, embedded_difference
from common.errors import JobFailedError, MalformedError
from common.evaluate import prepare
from common.job import StoppedError, StopSignal
from common.loss import Loss, TensorBatch, language_loss
from common.model import hf, partition
from common.model.partition import OWNED_EXPERT
from common.model.router_rows import PublicRouter
from common.model.transformer import CausalLM, ModelOutput
from common.packing import Batch, MixtureState, PackedText, batches
from common.tokenizer import Tokenizer
from common.training import Trainer, TrainingConfig
from owner_client.anchor import PublicAnchor
from owner_client.held_out_bias import MOST_EAGER, choose_bias
from owner_client.router_init import MakeRow, RouterStart, initialise_routers, row_maker

EXPERT_FILE: Final = "expert.safetensors"

_PUBLIC: Final = 1
"""Index of public text among the sources of a batch; the owner's is 0."""


class ExpertJob(TrainingConfig, frozen=True, extra="forbid"):
    """The job's JSON file."""

    base: Path
    """The public model's directory."""
    data: Path
    """Folder or file of the owner's documents; its train split is read."""
    public: Path
    """Folder or file of public documents, which every owner has; its train split is read."""
    unseen_share: float | None = Field(default=None, ge=0, lt=1)
    """Share of the public documents that the public model was not trained on; these alone are read. By default what
    the base's own record says, and all of them where it says nothing."""
    negative_share: float = Field(default=0.125, ge=0, lt=1)
    """Share of each batch that is public text."""
    public_anchor: float = Field(default=2.0, ge=0)
    """Weight of the distance to the public expert's output on public text (`anchor`); the paper has none."""
    router_learning_rate: float = Field(default=0.0, ge=0)
    """For router rows; the paper trains them at `learning_rate`, at 0 they stay as initialised."""
    coordinated: bool = True
    """Whether the expert trains beside the public one; alone it is the public model's feed-forward, trained further."""
    bias: bool = True
    """Whether rows have a bias, which is trained and then moved on held-out text."""
    held_out_bytes: int = Field(default=200_000, ge=0)
    """How much held-out text, of the owner's and of public text each, the bias is moved on at most; at 0 it stays as
    it was trained."""
    held_out_public_share: float = Field(default=0.8, ge=0, le=1)
    """How much the public part of it counts. It stands for everybody else's text, of which a release reads more than
    of any one owner's."""
    router_z_loss: float = Field(default=0.0, ge=0)
    """On the size of router logits; rows that stay log density ratios have large ones, which say how sure they are, and
    a loss on them would reach the expert through the hidden states and the bias. The paper's learned rows have 1e-3."""
    router_start: RouterStart = "ratio"
    """What router rows start from (`router_init`)."""
    embedder: Path | None = None
    """Directory of the embedder (`common.embedder`) that rows start from with `router_start` "embedder"."""
    embedder_projection: bool = False
    """Whether an embedder of another width than `hidden_size` is projected."""
    embedder_documents: int = Field(default=1000, ge=1)
    """How many documents of own and of public text are embedded, at most."""
    router_prior: float = Field(default=0.4, gt=0, lt=1)
    """How likely own text is taken to be; less makes the expert more reluctant everywhere."""
    router_sequences: int = Field(default=512, ge=1)
    """How many sequences of own and of public text the router rows start from."""

    @model_validator(mode="after")
    def _together(self) -> "ExpertJob":
        if not self.coordinated and (self.public_anchor or self.router_learning_rate):
            raise ValueError(
                "an expert that trains alone has no public expert beside it and no router: set "
                "public_anchor and router_learning_rate to 0"
            )
        if (self.router_start == "embedder") != (self.embedder is not None):
            raise ValueError('router_start "embedder" and embedder, its directory, go together: give both or neither')
        return self


def main(arguments: list[str]) -> int:
    """Run the job; returns the exit status."""
    return training_job.run(arguments, ExpertJob, run)


def run(config: ExpertJob, stop: StopSignal) -> dict[str, object]:
    """Make the expert's directory, or find that an earlier run made it; returns what `training.json` records.

    Raises:
        JobFailedError: training changed something that is not the owner's; nothing is written.
    """
    own_corpus, public_corpus = read_corpus(config.data), read_corpus(config.public)
    documents = own_corpus.train, _public_documents(config, public_corpus.train)
    held_out = tuple(sample(corpus.validation, config.held_out_bytes) for corpus in (own_corpus, public_corpus))
    public_model = hf.load(config.base, device=config.device, dtype=torch.float32)
    base_digest = training.digest_tensors(public_model.state_dict())
    fingerprint = _fingerprint(config, base_digest, documents, held_out)
    if (record := training_job.finished(config, fingerprint)) is not None:
        return record
    tokens = Tokenizer.load(config.base)
    own, public = (
        training.packed(texts, tokens, config, name=str(path))
        for path, texts in zip((config.data, config.public), documents, strict=True)
    )
    make_row = _row_maker(config, *documents, hidden_size=public_model.config.hidden_size)
    model = _two_expert(config, public_model, own=own, public=public, make_row=make_row)
    trained = model if config.coordinated else _dense(public_model)
    frozen = training.digest_tensors(_frozen(trained))
    trainer = Trainer(
        trained,
        config=config,
        loss=partial(expert_loss, config=config, anchor=PublicAnchor(trained)),
        fingerprint=fingerprint,
        peak_learning_rate=partial(_peak_learning_rate, config=config),
        after_step=partial(_clamp_biases, trained),
        report=training_job.reporter("train"),
        stop=stop,
    )
    result = trainer.train(partial(_batches, own, public, config))
    if training.digest_tensors(_frozen(trained)) != frozen:
        raise JobFailedError("training changed parameters that are not the owner's; the expert is not written")
    if not config.coordinated:
        _take_over(model, trained)
    if config.bias and config.held_out_bytes:
        _move_bias(config, model, held_out, tokens, stop)
    record = {
        "fingerprint": fingerprint,
        "base_sha256": base_digest,
        "frozen_sha256": frozen,
        "own_tokens": own.num_tokens,
        "public_tokens": public.num_tokens,
        "biases": [router.biases[str(OWNED_EXPERT)].item() for router in model.routers],
        **asdict(result),
        "config": config.model_dump(mode="json"),
    }
    training_job.publish(config.output, partial(_write, model, record), checkpoint=config.checkpoint_folder)
    return record


def _fingerprint(
    config: ExpertJob,
    base_digest: str,
    documents: Sequence[Sequence[Document]],
    held_out: Sequence[Sequence[Document]],
) -> str:
    """Of all that decides the expert; texts are pairs of the owner's and the public ones."""
    own, public = (training.digest_texts(each.text for each in texts) for texts in documents)
    return training.fingerprint(
        config,
        base=base_digest,
        data=own,
        public=public,
        held_out=training.digest_texts(each.text for texts in held_out for each in texts),
        embedder="" if config.embedder is None else directory_digest(config.embedder),
    )


def _public_documents(config: ExpertJob, documents: Sequence[Document]) -> Sequence[Document]:
    """Public documents that the public model was not trained on, or all of them where it was trained on all.

    Raises:
        MalformedError: none is left.
    """
    share = training_job.unseen_share(config.base) if config.unseen_share is None else config.unseen_share
    if share == 0:
        return documents
    unseen, _ = set_unseen_aside(documents, share=share)
    if not unseen:
        raise MalformedError(
            f"{config.public}: none of {len(documents)} documents is unseen at share {share}; add more"
        )
    return unseen


def expert_loss(output: ModelOutput, batch: TensorBatch, *, config: ExpertJob, anchor: PublicAnchor) -> Loss:
    """The language loss, and on public rows the distance to the public expert.

    A batch of few long sequences may hold more public rows than its share, or none: the distance weighs as many times
    more as there are more of them, so that over a run it weighs the same.
    """
    language = language_loss(output, batch, z_loss=config.z_loss, router_z_loss=config.router_z_loss)
    if config.public_anchor == 0 or config.negative_share == 0:
        return language
    is_public_B = batch.sources_B == _PUBLIC
    weight = config.public_anchor * float(is_public_B.float().mean()) / config.negative_share
    return Loss(language.total + weight * anchor.distance(is_public_B), language.cross_entropy)


def _peak_learning_rate(name: str, *, config: ExpertJob) -> float:
    return config.router_learning_rate if ".mlp.gate.rows." in name else config.learning_rate


def _row_maker(config: ExpertJob, own: Sequence[Document], public: Sequence[Document], *, hidden_size: int) -> MakeRow:
    """What `router_start` asks for, with the embedder's part done."""
    difference_D = None
    if config.embedder is not None:
        texts = ([d.text for d in documents[: config.embedder_documents]] for documents in (own, public))
        difference_D = embedded_difference(
            Embedder(config.embedder), *texts, hidden_size=hidden_size, project=config.embedder_projection
        )
    return row_maker(
        config.router_start, prior=config.router_prior, seed=config.seed, embedded_difference_D=difference_D
    )


def _two_expert(
    config: ExpertJob, public_model: CausalLM, *, own: PackedText, public: PackedText, make_row: MakeRow
) -> CausalLM:
    model = hf.two_expert(public_model)
    sizes = public_model.config
    router = PublicRouter.load(config.base, num_hidden_layers=sizes.num_hidden_layers, hidden_size=sizes.hidden_size)
    initialise_routers(
        model,
        public_model,
        router,
        own=own,
        public=public,
        make_row=make_row,
        num_sequences=config.router_sequences,
        batch_size=config.batch_size,
        device=config.device,
    )
    for gate in model.routers:
        gate.rows[OWNED_EXPERT].requires_grad_(config.router_learning_rate > 0)
        gate.biases[str(OWNED_EXPERT)].requires_grad_(config.bias)
    return model


def _move_bias(
    config: ExpertJob,
    model: CausalLM,
    held_out: Sequence[Sequence[Document]],
    tokens: Tokenizer,
    stop: StopSignal,
) -> None:
    """`choose_bias` on held-out documents of the owner and of the public.

    Raises:
        StoppedError: asked to stop.
    """

    def go_on(_rows: int) -> None:
        if stop.requested:
            raise StoppedError("stopped after training, while the bias was chosen; run the job again to go on")

    own, public = (prepare(documents, tokens, sequence_length=config.sequence_length) for documents in held_out)
    share = config.held_out_public_share
    choose_bias(model, own, public, public_share=share, batch_size=config.batch_size, advance=go_on)


def _dense(public_model: CausalLM) -> CausalLM:
    """The public model with feed-forwards of its own to train; the rest is frozen."""
    model = copy.deepcopy(public_model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_is_feed_forward(name))
    return model


def _take_over(model: CausalLM, dense: CausalLM) -> None:
    """Make the feed-forwards of `dense` the owner's expert in a two-expert model."""
    theirs, ours = dense.state_dict(), model.state_dict()
    for layer in range(model.config.num_hidden_layers):
        for projection in partition.PROJECTIONS:
            ours[partition.feed_forward(layer, OWNED_EXPERT, projection)].copy_(
                theirs[partition.dense_feed_forward(layer, projection)]
            )


def _is_feed_forward(name: str) -> bool:
    return ".mlp." in name and ".experts." not in name and ".gate." not in name


def _frozen(model: CausalLM) -> dict[str, Tensor]:
    """All that is not the owner's: parameters by name, and the bias directions."""
    parameters = {
        n: p for n, p in model.named_parameters() if not _is_feed_forward(n) and partition.owner_of(n) != OWNED_EXPERT
    }
    directions = {f"{i}": r.bias_direction for i, r in enumerate(model.routers) if r.bias_direction is not None}
    return {**parameters, **directions}


def _clamp_biases(model: CausalLM, _step: int) -> None:
    """A bias may make its expert more reluctant, never more eager."""
    with torch.no_grad():
        for router in model.routers:
            router.biases[str(OWNED_EXPERT)].clamp_(max=MOST_EAGER)


def _batches(
    own: PackedText, public: PackedText, config: ExpertJob, state: MixtureState | None = None
) -> Iterator[tuple[Batch, MixtureState]]:
    shares = [1 - config.negative_share, config.negative_share]
    return batches([own, public], shares=shares, batch_size=config.batch_size, state=state)


def _write(model: CausalLM, record: dict[str, object], directory: Path) -> None:
    save_file(expert_tensors(model), directory / EXPERT_FILE, metadata={"format": "pt"})
    training_job.write_record(directory, record)


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
