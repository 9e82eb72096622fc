"""A consortium without its wires: every job that makes a model, run once and kept by the digest of what went into it.

A stage's directory is named by its kind and that digest, so a run that was stopped goes on with what is there, and two
runs that share a stage share its result. Jobs are the product's own, as processes, as many at a time as cores.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from common import data
from common.data import write_documents
from common.ensemble import Nats
from common.errors import MalformedError
from common.evaluate import Domain, Scores, prepare, score, token_nats
from common.files import write_atomic
from common.jobs import run_job
from common.mixed import mixed_documents
from common.model import hf
from common.model.assembly import assemble
from common.model.transformer import CausalLM
from common.tokenizer import Tokenizer
from owner_client.train import ExpertJob

PUBLIC = "public"
UNSEEN = "public-unseen"
"""Public text that the public model was not trained on."""
MIXED = "mixed"

Row = dict[str, float]
"""Bits per byte by domain, `mixed` among them."""

Job = tuple[str, str, Mapping[str, object]]
"""A stage to run: the module of the job, the stage's name, and the job's configuration."""

_HELD_OUT_BYTES = ExpertJob.model_fields["held_out_bytes"].default
"""What an owner's bias is set on, where so much is evaluated at all."""


@dataclass(frozen=True)
class Sizes:
    """What a preset decides. Tokens are counted in sequences of `sequence_length`."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    sequence_length: int
    batch_size: int
    pretrain_steps: int
    pretrain_learning_rate: float
    expert_steps: int
    expert_learning_rate: float
    dense_learning_rate: float
    tuning_steps: int
    router_steps: int
    router_learning_rate: float
    """Of router training on proxies."""
    evaluated_bytes: Annotated[int, Field(ge=1)]
    seeds: tuple[int, ...]
    router_mixed_share: float = 0.0
    """Of what rows are trained on: paragraphs of proxies and public text in turn."""
    router_hold_public: float = 0.0
    """How firmly the routing of whole public documents stays what it is while rows are trained."""
    split_bytes: int | None = None
    """At most so much text of each split of a domain is read."""
    public_share: float = 0.1
    unseen_share: float = 0.4
    """Of the public documents, so many are kept for negatives, proxies and router training."""
    num_proxies: int = 600
    """At most, of each owner."""
    held_alike: bool = True
    """Whether each owner's held-out proxies count as much as every other's when trained rows are tried on them."""
    experts_choose: bool = False
    """Whether an owner's expert chooses its proxies, not a classifier."""
    min_accuracy: float = 0.95
    """With which an owner's text is told from public text, or it goes without proxies."""
    short_sequence_length: int | None = None
    """What the public model reads first, where that is shorter; as many tokens a batch."""
    long_steps: int = 0
    """How many of its steps, the last ones, read sequences of `context`, where the others are shorter."""
    patchwork_share: float = 0.0
    """Of the public documents, so many are pretrained on cut up and mixed."""
    rope_theta: float = 10_000.0
    topic_word_evenness: float = 0.0
    topic_oversampling: int = 1
    context_length: int | None = None
    """Of the windows that everything is measured in, and of the sequences that the public model reads last, where that
    is longer than what is trained on otherwise."""
    coordinated: bool = True
    """Whether experts train beside the public one."""
    negative_share: float = 0.125
    public_anchor: float = 2.0
    router_start: str = "ratio"
    router_prior: float = 0.4
    router_sequences: int = 1024
    top_k: int = 2
    """Experts a token, in the release and in every mixture and ensemble that it is measured against."""
    ablations: tuple[str, ...] = ()
    """Of these alone; of all by default."""
    device: str = "cpu"
    precision: str = "float32"

    @property
    def context(self) -> int:
        """Tokens of the longest sequence that anything reads."""
        return self.context_length or self.sequence_length

    @property
    def scored_rows(self) -> int:
        """Windows that are scored at a time: on a CPU so few that what is computed of them stays in its caches."""
        return 2 if self.device == "cpu" else 8


@dataclass
class Consortium:
    """One public model and its owners, for one seed."""

    work: Path
    source: Path
    owners: tuple[str, ...]
    sizes: Sizes
    seed: int
    split: data.Split = "test"
    """What everything is measured on; another one while sizes are chosen."""

    def __post_init__(self) -> None:
        self._domains: dict[tuple[str, data.Split], Domain] = {}
        self.work.mkdir(parents=True, exist_ok=True)
        self._measured_file = self.work / "measured.json"
        self._measured: dict[str, Any] = {}
        if self._measured_file.exists():
            self._measured = json.loads(self._measured_file.read_text())

    # Text

    def corpora(self) -> Path:
        """Each owner's own documents and the public ones, a share of every domain among them but in the test split,
        which tells domains apart."""
        sizes = self.sizes
        folder = self.place(
            "corpora", [self.owners, sizes.public_share, sizes.unseen_share, sizes.split_bytes, str(self.source)]
        )
        if folder.exists():
            return folder
        partial = folder.with_name(folder.name + ".partial")
        if len({*self.owners, PUBLIC, UNSEEN, MIXED}) != len(self.owners) + 3:
            raise MalformedError(f"owners {', '.join(self.owners)}: every owner needs a name of its own")
        public = self._read(PUBLIC)
        seen: dict[str, str] = {}
        for owner in self.owners:
            own = self._read(owner)
            text = ",".join(sorted(document.digest for document in own["train"]))
            if text in seen:
                raise MalformedError(f"{owner} and {seen[text]} have the same text; give each owner its own")
            seen[text] = owner
            for split in ("train", "validation"):
                given, kept = data.set_public_aside(own[split], share=sizes.public_share)
                if kept:
                    own[split] = kept
                    public[split] += given
            _write(partial / owner, own)
        unseen, public["train"] = data.set_unseen_aside(public["train"], share=sizes.unseen_share)
        _write(partial / UNSEEN, {**public, "train": unseen})
        _write(partial / PUBLIC, public)
        partial.rename(folder)
        return folder

    def _read(self, name: str) -> dict[str, list[data.Document]]:
        corpus, most = data.read_corpus(self.source / name), self.sizes.split_bytes
        parts: dict[str, list[data.Document]] = {split: list(corpus.split(split)) for split in data.SPLITS}
        return parts if most is None else {split: data.sample(part, most) for split, part in parts.items()}

    def documents(self, name: str, *, split: data.Split | None = None) -> list[data.Document]:
        """Held-out documents of a domain, or of all owners' domains mixed. What is chosen is chosen on validation."""
        corpora, room, split = self.corpora(), self.sizes.evaluated_bytes, split or self.split
        if name == MIXED:
            held = {owner: data.read_split(corpora / owner, split) for owner in self.owners}
            return mixed_documents(held, total_bytes=room, seed=0)
        return data.sample(data.read_split(corpora / name, split), room)

    def domain(self, name: str, *, split: data.Split | None = None) -> Domain:
        """The same ready to be scored; made once."""
        split = split or self.split
        if (name, split) not in self._domains:
            documents, tokenizer = self.documents(name, split=split), Tokenizer.load(self.base())
            self._domains[name, split] = prepare(documents, tokenizer, sequence_length=self.sizes.context)
        return self._domains[name, split]

    @property
    def measured_on(self) -> list[str]:
        """The domains that every system is measured on."""
        return [PUBLIC, *self.owners, MIXED]

    # Models

    def base(self) -> Path:
        """The public model."""
        sizes = self.sizes
        config = {
            "public": self.corpora() / PUBLIC,
            "vocab_size": sizes.vocab_size,
            "hidden_size": sizes.hidden_size,
            "intermediate_size": sizes.intermediate_size,
            "num_hidden_layers": sizes.num_hidden_layers,
            "num_attention_heads": sizes.num_attention_heads,
            "steps": sizes.pretrain_steps,
            "learning_rate": sizes.pretrain_learning_rate,
            "final_learning_rate_share": 0.05,
            "router_sequences": sizes.router_sequences,
            **self._unlike_default("patchwork_share", "rope_theta", "topic_word_evenness", "topic_oversampling"),
            **self._short_first(),
        }
        return self.run(("coordinator.pretrain", "base", config))

    def _unlike_default(self, *names: str) -> dict[str, object]:
        """Those of the sizes that are not the default: what a stage was made with before they were there stays its."""
        given = {name: getattr(self.sizes, name) for name in names}
        return {name: value for name, value in given.items() if value != Sizes.__dataclass_fields__[name].default}

    def _short_first(self) -> dict[str, object]:
        sizes = self.sizes
        if not sizes.long_steps:
            return {}
        short = sizes.short_sequence_length or sizes.sequence_length
        return {
            "sequence_length": short,
            "batch_size": sizes.batch_size * sizes.sequence_length // short,
            "long_sequence_length": sizes.context,
            "long_steps": sizes.long_steps,
        }

    def experts(self, *, public: str = UNSEEN, **changes: object) -> list[Path]:
        """Every owner's expert, as `expert_jobs` says."""
        return self.jobs(self.expert_jobs(public=public, **changes))

    def expert_jobs(self, *, public: str = UNSEEN, **changes: object) -> list[Job]:
        """What trains every owner's expert, all alike with these options, beside this public text."""
        corpora, base, sizes = self.corpora(), self.base(), self.sizes
        common: dict[str, object] = {
            "base": base,
            "public": corpora / public,
            "steps": sizes.expert_steps,
            "learning_rate": sizes.expert_learning_rate,
            "negative_share": sizes.negative_share,
            "public_anchor": sizes.public_anchor,
            **({"held_out_bytes": sizes.evaluated_bytes} if sizes.evaluated_bytes < _HELD_OUT_BYTES else {}),
            **({} if sizes.router_start == "ratio" else {"router_start": sizes.router_start}),
            "router_prior": sizes.router_prior,
            "router_sequences": sizes.router_sequences,
            **({} if sizes.coordinated else {"coordinated": False}),
            **changes,
        }
        return [("owner_client.train", f"expert-{o}", {**common, "data": corpora / o}) for o in self.owners]

    def dense(self) -> list[Path]:
        """Every owner's dense expert, as `dense_jobs` says."""
        return self.jobs(self.dense_jobs())

    def dense_jobs(self) -> list[Job]:
        """What trains every owner's dense expert: the whole public model, on as many sequences as its expert."""
        steps, rate = self.sizes.expert_steps, self.sizes.dense_learning_rate
        return [
            self.tune_job(
                f"dense-{owner}", self.base(), {owner: self.corpora() / owner}, steps=steps, learning_rate=rate
            )
            for owner in self.owners
        ]

    def tune_job(self, name: str, start: Path, sources: Mapping[str, Path], **changes: object) -> Job:
        """What trains a model on from `start` on equal shares of texts."""
        shares = {key: {"text": text, "share": 1 / len(sources)} for key, text in sources.items()}
        return "common.tune", name, {"start": start, "sources": shares, **changes}

    def run(self, job: Job) -> Path:
        """Run a job on all cores, as nothing else is to be run beside it; where its output is."""
        module, name, config = job
        return self.jobs([(module, name, {**config, "threads": _cores()})])[0]

    def release(self, experts: Sequence[Path]) -> Path:
        """The assembled release of these experts; all of them for every token when they are few."""
        top_k = min(self.sizes.top_k, 1 + len(experts))
        folder = self.place("release", [[path.name for path in experts], top_k])
        if not folder.exists():
            partial = folder.with_name(folder.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            files = [path / "expert.safetensors" for path in experts]
            assemble(self.base(), files, num_experts_per_tok=top_k, output=partial)
            partial.rename(folder)
        return folder

    def keep(self, name: str, inputs: object, model: CausalLM) -> Path:
        """A model that was computed here, as a directory."""
        folder = self.place(name, inputs)
        if not folder.exists():
            partial = folder.with_name(folder.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            Tokenizer.load(self.base()).save(partial)
            hf.save(model, partial)
            partial.rename(folder)
        return folder

    def jobs(self, jobs: Sequence[Job]) -> list[Path]:
        """Run jobs, one a core at a time, or find what they made before; where each one's output is."""
        sizes = self.sizes
        shared = {
            "batch_size": sizes.batch_size,
            "sequence_length": sizes.sequence_length,
            "seed": self.seed,
            "device": sizes.device,
            "precision": sizes.precision,
        }
        full = [(module, name, {"threads": 1, **shared, **config}) for module, name, config in jobs]
        places = [self.place(name, [module, _by_name(config)]) for module, name, config in full]
        with ThreadPoolExecutor(_cores()) as pool:
            list(pool.map(self._run, full, places))
        return places

    def _run(self, job: Job, output: Path) -> None:
        module, name, config = job
        if output.exists():
            return
        print(f"  {name}", flush=True)
        run_job(
            module,
            {**config, "output": output},
            config_path=output.with_name(output.name + ".json"),
            on_event=lambda event: None,
        )

    def place(self, name: str, inputs: object) -> Path:
        """Where a stage of that kind and these inputs is kept."""
        digest = hashlib.sha256(json.dumps([self.seed, inputs], default=str, sort_keys=True).encode()).hexdigest()
        return self.work / f"{name}-{digest[:12]}"

    # Scores

    def score(self, model: Path, domain: str, *, top_k: int | None = None, split: data.Split | None = None) -> Scores:
        """Bits per byte and routing shares, computed once."""
        split = split or self.split

        def measured() -> object:
            loaded = hf.load(model, device=self.sizes.device)
            if top_k is not None:
                loaded = with_top_k(loaded, top_k)
            found = score(loaded, self.domain(domain, split=split), batch_size=self.sizes.scored_rows)
            return [found.bits_per_byte, found.shares_per_layer]

        key = f"{model.name} {domain} {split} {self.sizes.evaluated_bytes} {top_k or ''}"
        bits, shares = self.remembered(key, measured)
        return Scores(bits, tuple(tuple(layer) for layer in shares))

    def remembered(self, key: str, measure: Callable[[], object]) -> Any:
        """What was measured under that name, in this run or an earlier one; as JSON gives it back."""
        if key not in self._measured:
            self._measured[key] = json.loads(json.dumps(measure()))
            write_atomic(self._measured_file, json.dumps(self._measured).encode())
        return self._measured[key]

    def cost(self, models: Sequence[Path]) -> dict[str, float]:
        """What a token costs: parameters that work on it, in all `models`, and time over that of the public model.

        Both read one batch of public text in turns; the fastest of several times is what each can do.
        """
        return dict(self.remembered(f"cost {' '.join(path.name for path in models)}", lambda: self._cost(models)))

    def _cost(self, models: Sequence[Path]) -> dict[str, float]:
        loaded = [hf.load(path, device=self.sizes.device) for path in models]
        public = [hf.load(self.base(), device=self.sizes.device)]
        batch_BT = self.domain(PUBLIC).windows.input_ids_WT[: self.sizes.scored_rows]
        ids_BT = torch.from_numpy(batch_BT).to(self.sizes.device)
        times = [(_seconds(loaded, ids_BT), _seconds(public, ids_BT)) for _ in range(7)]
        ours, base = (min(each) for each in zip(*times, strict=True))
        return {
            "active_parameters": sum(active_parameters(model) for model in loaded),
            "time_per_token": ours / base,
        }

    def nats(self, model: Path, domain: Domain) -> Nats:
        """Losses of every token of a domain."""
        return token_nats(hf.load(model, device=self.sizes.device), domain, batch_size=self.sizes.scored_rows)


@torch.inference_mode()
def _seconds(models: Sequence[CausalLM], ids_BT: torch.Tensor) -> float:
    """For one batch through all `models`."""
    started = time.perf_counter()
    for model in models:
        model(ids_BT).logits_BTV.sum().item()
    return time.perf_counter() - started


def expert_steps_in_full_steps(sizes: Sizes) -> float:
    """How many steps of training a whole mixture cost as many multiplications as one owner's training.

    Per token a parameter costs one multiplication forwards, one backwards to its input, and one for its own gradient;
    an owner leaves out the last but for its own feed-forwards (that nothing below the first layer needs a gradient is
    not counted in its favour).
    """
    attention = 4 * sizes.hidden_size**2 * sizes.num_hidden_layers
    feed_forward = 3 * sizes.hidden_size * sizes.intermediate_size * sizes.num_hidden_layers
    shared = attention + sizes.vocab_size * sizes.hidden_size
    pair, full = shared + 2 * feed_forward, shared + sizes.top_k * feed_forward
    return sizes.expert_steps * (2 * pair + feed_forward) / (3 * full)


def active_parameters(model: CausalLM) -> int:
    """How many parameters work on a token: all but the embeddings it does not look up and the experts not chosen."""
    config = model.config
    everything = sum(parameter.numel() for parameter in model.parameters())
    asleep = (config.vocab_size - 1) * config.hidden_size
    if config.num_experts:
        expert = 3 * config.hidden_size * config.intermediate_size
        asleep += config.num_hidden_layers * (config.num_experts - config.num_experts_per_tok) * expert
    return everything - asleep


def with_top_k(model: CausalLM, top_k: int) -> CausalLM:
    """The same mixture with another number of experts a token."""
    config = model.config.with_experts(model.config.num_experts, top_k)
    with torch.device("meta"):
        changed = CausalLM(config)
    changed.load_state_dict(model.state_dict(), strict=True, assign=True)
    return changed


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _by_name(value: object) -> object:
    """What a configuration says, with directories by their names: those carry the digest of what is in them."""
    if isinstance(value, Mapping):
        return {key: _by_name(item) for key, item in value.items() if key != "threads"}
    return f"{value.parent.name}/{value.name}" if isinstance(value, Path) else value


def _write(folder: Path, parts: Mapping[str, list[data.Document]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, documents in parts.items():
        write_documents(folder / f"{name}.jsonl.gz", documents)
