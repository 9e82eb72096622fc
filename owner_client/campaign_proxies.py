"""Choosing documents of a public pool that look like an owner's, for a campaign: `python -m
owner_client.campaign_proxies JOB.json`. What is written are digests and scores of the pool's documents, and how well
the owner's text is told from the pool's.
"""

import json
import sys
from pathlib import Path

from pydantic import BaseModel, Field

from common import data, job
from common.files import write_atomic
from owner_client import proxies
from owner_client.proxies import ProxyJob

_DIGITS = 6


class CampaignProxies(BaseModel, frozen=True, extra="forbid"):
    """The job's JSON file."""

    data: Path
    pool: Path
    count: int = Field(ge=1)
    min_accuracy: float = Field(ge=0, le=1)
    encoder: Path | None = None
    base: Path | None = None
    expert: Path | None = None
    threads: int = Field(default=2, ge=1)
    output: Path


def run(config: CampaignProxies) -> dict[str, object]:
    """Choose and write; returns what the job's last event says."""
    job.use_cpu(threads=config.threads)
    wanted = ProxyJob(data=config.data, public=config.pool, count=config.count, min_accuracy=config.min_accuracy,
                      encoder=config.encoder, base=config.base, expert=config.expert,
                      output=config.output)  # fmt: skip
    chosen = proxies.select(wanted)
    tried_on = len(data.read_corpus(config.data).validation)
    figure = {"name": "classifier", "measure": "told_apart", "value": chosen.accuracy, "documents": tried_on}
    attachment = {"ids": chosen.ids, "scores": [round(score, _DIGITS) for score in chosen.scores]}
    write_atomic(config.output, json.dumps({"figures": [figure], "attachment": attachment}).encode())
    return {"task": "proxies", "output": str(config.output)}


if __name__ == "__main__":
    sys.exit(job.run(sys.argv[1:], CampaignProxies, run))
