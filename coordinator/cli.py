"""`concord coordinator`: what a consortium's admin does."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from common.cli import EXIT_FAILED, JsonOption, existing, new_app, reporting, show_tables
from common.config import describe, load_options
from common.console import Reporter, job_progress
from common.errors import MalformedError
from common.jobs import run_job
from common.telemetry import set_up_logging
from common.trust.manifest import digest_of
from common.trust.rules import is_in_force, is_to_come
from common.trust.statements import COORDINATOR
from common.trust.tables import tables_of
from coordinator import campaigns_cli, identity_cli, intake_cli, router_cli
from coordinator.config import CoordinatorSettings
from coordinator.evaluation import evaluation_job
from coordinator.home import Coordinator, create, open_home
from coordinator.options import HomeOption
from coordinator.recovery import recover
from coordinator.releases import latest_base, make_release, publish_base
from coordinator.state import owners_table, state_of_daemon

app = new_app("Run a consortium: publish the public model, invite owners, make releases.")

identity_cli.add_to(app)
intake_cli.add_to(app)
campaigns_cli.add_to(app)
router_cli.add_to(app)


@app.command()
def init(
    federation: Annotated[str, typer.Option(help="Name of the consortium, like a DNS name: health.example.")],
    home: HomeOption = Path("coordinator"),
    origin: Annotated[
        str | None, typer.Option(help="Name of the log, for good; by default FEDERATION/log. A lost log needs another.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port for members (mutual TLS).")] = 7443,
    enrolment_port: Annotated[int, typer.Option(help="Port where invitations are redeemed.")] = 7444,
    advertise: Annotated[str | None, typer.Option(help="Host name that owners dial, where it is not --host.")] = None,
    num_experts_per_tok: Annotated[int, typer.Option(help="Experts active for each token in releases.")] = 2,
    database: Annotated[
        str | None, typer.Option(help="postgresql://USER@HOST/NAME, migrated before; by default SQLite in the home.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a coordinator's home: certificate authority, log and signing keys, an empty registry."""
    fields = {
        "federation": federation,
        "origin": origin or f"{federation}/log",
        "host": host,
        "port": port,
        "enrolment_port": enrolment_port,
        "advertise": advertise,
        "num_experts_per_tok": num_experts_per_tok,
        "database": database,
    }
    try:
        settings = CoordinatorSettings.model_validate(fields)
    except ValidationError as error:
        raise MalformedError(describe(error)) from error
    with reporting(as_json) as reporter:
        made = create(existing(home), settings)
        reporter.step(f"coordinator of {federation} in {made.path}; its settings are in {made.settings_file.name}")
        reporter.result({"home": str(made.path), "public": str(made.public)})


@app.command("recover")
def recover_command(
    source: Annotated[
        Path | None, typer.Option("--from", help="Published files, or a copy of them; by default the home's own.")
    ] = None,
    home: HomeOption = Path("coordinator"),
    as_json: JsonOption = False,
) -> None:
    """Roll a registry that was restored from an older backup forward, to all that was published. Never back."""
    with reporting(as_json) as reporter:
        found = recover(existing(home), existing(source) if source else None)
        reporter.step(f"the registry holds {found.after} entries; {found.after - found.before} of them were missing")
        if found.joined:
            reporter.step(f"joined since the backup: {', '.join(found.joined)}")
        if found.without_certificate:
            reporter.step(
                f"need an invitation (no certificate of theirs holds): {', '.join(found.without_certificate)}"
            )
        if found.with_certificate:
            reporter.step(f"need one if they renewed since the backup: {', '.join(found.with_certificate)}")
        if found.missing:
            reporter.warning(f"{len(found.missing)} published files are missing; recover from a copy that has them")
        if found.still_behind:
            reporter.warning(f"nothing may be signed yet: {found.still_behind}")
        reporter.result({name: value for name, value in asdict(found).items() if name != "still_behind"})
    if found.still_behind:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def migrate(
    database: Annotated[str, typer.Option(help="postgresql://OWNER@HOST/NAME; a password comes from PGPASSFILE.")],
    writer: Annotated[
        str | None, typer.Option(help="Role of the coordinators: it may add to the log and read it, nothing else.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make or change a PostgreSQL registry's tables, as the role that owns them; then `init --database`."""
    with reporting(as_json) as reporter:
        try:
            from coordinator import postgresql  # its libraries are installed where it is used
        except ModuleNotFoundError as error:
            raise MalformedError("PostgreSQL needs more libraries: pip install 'concord-moe[postgresql]'") from error
        version = postgresql.migrate(database, writer=writer)
        reporter.step(f"the registry's tables are at version {version}")
        reporter.result({"version": version, "writer": writer})


@app.command()
def pretrain(
    data: Annotated[Path, typer.Option(help="Folder of public text (train/validation/test).")],
    output: Annotated[Path, typer.Option(help="Where the base is written.")],
    options: Annotated[Path, typer.Option("--config", help="TOML with sizes of model and training.")],
    as_json: JsonOption = False,
) -> None:
    """Train a small public model with its own tokenizer; `publish` it then. Interrupted, the same command goes on."""
    job = {**load_options(options), "public": existing(data), "output": existing(output)}
    with reporting(as_json) as reporter:
        _train("coordinator.pretrain", job, reporter, what="public model")
        reporter.step("public model trained")
        reporter.result({"base": str(existing(output))})


@app.command()
def tune(
    release: Annotated[Path, typer.Argument(help="Directory of an assembled release.")],
    output: Annotated[Path, typer.Option(help="Where the tuned model is written.")],
    options: Annotated[Path, typer.Option("--config", help="TOML with texts, their shares, and the training.")],
    as_json: JsonOption = False,
) -> None:
    """Train a release's router rows, and nothing else, on public text. It makes a model to look at, not a release."""
    job = {**load_options(options), "start": existing(release), "output": existing(output), "trained": "routers"}
    with reporting(as_json) as reporter:
        _train("common.tune", job, reporter, what="router rows")
        reporter.step("router rows trained; every other tensor is the release's")
        reporter.result({"model": str(existing(output))})


def _train(module: str, job: Mapping[str, Any], reporter: Reporter, *, what: str) -> None:
    """Run a training job as a process; its configuration lies beside its output."""
    output: Path = job["output"]
    output.parent.mkdir(parents=True, exist_ok=True)
    config_path = output.with_name(f"{output.name}.job.json")
    run_job(module, job, config_path=config_path, on_event=job_progress(reporter, what))


@app.command()
def publish(
    model: Annotated[Path, typer.Argument(help="Directory of the base: an OLMo 2 model with router.safetensors.")],
    home: HomeOption = Path("coordinator"),
    as_json: JsonOption = False,
) -> None:
    """Publish a public checkpoint: its files by content, a signed statement in the log."""
    with reporting(as_json) as reporter, open_home(existing(home)) as coordinator:
        base = publish_base(coordinator, existing(model))
        reporter.step(f"public checkpoint of round {base.statement.round} is in the log")
        reporter.result({"base_digest": base.statement.base_digest, "directory": str(base.directory)})


@app.command()
def registry(
    home: HomeOption = Path("coordinator"),
    as_json: JsonOption = False,
) -> None:
    """The registry as tables: who has joined, what is consented to and until when, what was released with whom."""
    with reporting(as_json) as reporter, open_home(existing(home)) as coordinator:
        now, history = datetime.now(UTC), coordinator.registry.head()
        latest = {name: each.describe(at=now) for name, each in coordinator.enrolment.latest_certificates().items()}
        tables = tables_of(history, at=now, entry=coordinator.log.entry, certificates=latest)
        reporter.result({"entries": history.size, **show_tables(reporter, tables, as_json=as_json)})


@app.command()
def serve(home: HomeOption = Path("coordinator"), as_json: JsonOption = False) -> None:
    """Serve owners until stopped (ctrl-C or SIGTERM). Everything acknowledged is on disk."""
    from coordinator.daemon import serve as run_daemon

    set_up_logging(as_json)
    with reporting(as_json) as reporter:
        run_daemon(existing(home), reporter=reporter)


@app.command()
def release(
    home: HomeOption = Path("coordinator"),
    evaluate: Annotated[
        Path | None, typer.Option(help="Folder of held-out text to evaluate on, one folder a domain.")
    ] = None,
    max_bytes: Annotated[int | None, typer.Option(help="Evaluate on so much text of each domain at most.")] = None,
    threads: Annotated[int, typer.Option(help="Processor threads for the evaluation.")] = 2,
    as_json: JsonOption = False,
) -> None:
    """Assemble every expert with a consent in force, evaluate, sign, log and publish the next release."""
    with reporting(as_json) as reporter, open_home(existing(home)) as coordinator:
        job = None
        if evaluate is not None:
            job = evaluation_job(existing(evaluate), threads=threads, max_bytes=max_bytes, reporter=reporter)
        made = make_release(coordinator, evaluate=job)
        owners = ", ".join(made.owners.values()) or "nobody: the public model alone"
        for owner, why in made.left_out.items():
            reporter.warning(f"left out: {owner}: {why}")
        if made.is_new:
            reporter.step(f"{made.statement.release} is signed, logged and published with the experts of: {owners}")
        else:
            reporter.step(f"nothing came since {made.statement.release}; it stands, with the experts of: {owners}")
        reporter.result(
            {
                "release": made.statement.release,
                "is_new": made.is_new,
                "directory": str(made.directory),
                "experts": list(made.owners.values()),
                "left_out": dict(made.left_out),
                "manifest_digest": made.statement.manifest_digest,
            }
        )


@app.command()
def status(home: HomeOption = Path("coordinator"), as_json: JsonOption = False) -> None:
    """Who has joined and is there, what is in force, what was released, and what the daemon does now."""
    with reporting(as_json) as reporter, open_home(existing(home)) as coordinator:
        daemon = state_of_daemon(coordinator.home)
        rows = owners_table(coordinator, coordinator.registry.head(), daemon)
        columns = list(rows[0]) if rows else ["owner"]
        reporter.table("owners", columns, [[str(row[name]) for name in columns] for row in rows])
        known = ("running", "releasing", "doing", "since", "started_at", "updated_at", "warning", "disk_free_bytes")
        said = {name: daemon[name] for name in known if name in daemon}
        if as_json:
            reporter.result({**_status(coordinator), "owners_now": rows, "daemon": said})
        else:
            reporter.result({**_status(coordinator), **{f"daemon {name}": value for name, value in said.items()}})


def _status(coordinator: Coordinator) -> dict[str, object]:
    history, now = coordinator.registry.head(), datetime.now(UTC)
    latest = coordinator.enrolment.latest_certificates()
    in_force = {grant.party for grant in history.grants.values() if is_in_force(grant, at=now)}
    to_come = {grant.party for grant in history.grants.values() if is_to_come(grant, at=now)} - in_force
    ever = {grant.party for grant in history.grants.values()}
    revoked = {g.party for g in history.grants.values() if g.revoked_index is not None} - in_force - to_come
    return {
        "federation": coordinator.settings.federation,
        "address": f"{coordinator.settings.reachable_at}:{coordinator.settings.port}",
        "trusted_root": digest_of(bytes(coordinator.registry.root)),
        "log_entries": history.size,
        "owners": sorted(history.parties.keys() - {COORDINATOR}),
        "certificates_revoked": sorted(name for name, each in latest.items() if each.is_revoked),
        "base": latest_base(history).base_digest if history.bases else None,
        "consents_in_force": sorted(in_force),
        "consents_to_come": sorted(to_come),
        "consents_lapsed": sorted(ever - in_force - to_come - revoked),
        "opted_out": sorted(revoked),
        "experts": sorted({contribution.party for contribution in history.contributions_by_index.values()}),
        "releases": list(history.releases),
        "public": str(coordinator.home.public),
    }
