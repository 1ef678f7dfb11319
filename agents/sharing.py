"""A finished run, shared: its model with a card made from the run, and its traces and insights as a data set.

    python -m agents.self_improve --resume RUN --push-to-hub NAME

``NAME`` is a repository of the Hugging Face hub, such as ``me/lake``; the data set goes beside it, as
``me/lake-experience``. Both are made private: traces are what people and models have said. A folder, as
``./folder``, ``/folder`` or ``file:///folder``, takes the same files as ``model/`` and ``experience/``.
"""

import json
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import huggingface_hub
import jinja2
import yaml
from rich.console import Console

from agents.config import MACHINE, SelfImproveConfig, flag
from agents.run.resume import saved_config
from distill.lm.load import EMBEDDED, EMBEDDED_HUB_ID
from envs.any_text import first_line
from evals.result import ARM_LABELS, rate_text, temperature_text
from experience.exchange import export_run
from experience.masking import masked, masker
from experience.store import open_run
from experience.terminal import tell
from experience.text import printable
from experience.whole import appearing

EXPERIENCE = "experience"
MAX_INSIGHTS = 100
"""How many are on the card; all of them are in the data set."""
KINDS = {"model": "", "dataset": f"-{EXPERIENCE}"}
"""Kind of a repository -> what its name ends with."""
_ABOUT_EXPERIENCE = """
# What {name} has lived through

Episodes (`traces`, `turns`), what was drawn from them (`insights`, `evidence`) and how that did on held-out
episodes (`context_scores`). `python -m experience.store import` takes it back into a database.
"""
_HUB_ID = re.compile(r"[\w.-]{1,96}(?:/[\w.-]{1,96})?", re.ASCII)
_FILE = "file://"


class SharingError(RuntimeError):
    """A run that could not be shared, and is whole all the same; the message says what to do."""


def check_target(target: str) -> None:
    """See, before any work is done, whether something can be put there as far as this machine knows.

    Raises:
        SharingError: It cannot.
    """
    if (folder := _folder(target)) is not None:
        if folder.exists():
            raise SharingError(f"{folder} is there already: name a new folder to share with")
        return
    if _HUB_ID.fullmatch(target) is None:
        raise SharingError(
            f"{target!r} is neither the name of a repository, such as me/my-model, nor a folder, such as "
            "./shared"
        )
    if huggingface_hub.get_token() is None:
        raise SharingError(
            "to share on the hub, log in: run hf auth login, or set HF_TOKEN to a token that may write"
        )


def share(run: Path, target: str, console: Console, *, store: str | None = None, again: str) -> None:
    """Share a finished run, and say where its parts are; see the module.

    The database may have to be named, where the folder does not say it. ``again`` shares what failed to be.

    Raises:
        SharingError: They could not be put there.
    """
    check_target(target)
    try:
        with tempfile.TemporaryDirectory() as tmp:
            staged = Path(tmp)
            _stage(run, staged, _name(target), store)
            folder = _folder(target)
            if folder is not None:
                with appearing(folder) as whole:
                    shutil.copytree(staged, whole)
            for place in _to_hub(staged, target) if folder is None else (str(folder),):
                tell(console, f"shared: {place}")
    except SharingError:
        raise
    except Exception as error:  # whatever the hub, the network, the disk and the store raise
        raise SharingError(
            f"the run could not be shared with {target}: {type(error).__name__}: {first_line(error)}. "
            f"Nothing of the run in {run} is lost; share it with: {again}"
        ) from error


# --- where it goes -------------------------------------------------------------------------------


def _folder(target: str) -> Path | None:
    """The folder that is meant, if none of the hub's repositories is."""
    if target.startswith(_FILE):
        return Path(target.removeprefix(_FILE))
    return Path(target).expanduser() if target.startswith(("/", "./", "../", "~")) else None


def _name(target: str) -> str:
    return Path(target.removeprefix(_FILE)).name


def _to_hub(staged: Path, target: str) -> Iterator[str]:
    """A repository for each part; one that is there gets a commit."""
    api = huggingface_hub.HfApi(library_name="opcd-gym")
    for (kind, ending), part in zip(KINDS.items(), ("model", EXPERIENCE), strict=True):
        repo = api.create_repo(target + ending, repo_type=kind, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repo.repo_id,
            repo_type=kind,
            folder_path=staged / part,
            commit_message="A run of opcd-gym",
        )
        yield str(repo)


# --- what goes there -----------------------------------------------------------------------------


def _stage(run: Path, staged: Path, name: str, store: str | None) -> None:
    """Lay out what is shared: links to the model's files, and the rest anew."""
    try:
        results = json.loads((run / "results.json").read_text(encoding="utf-8"))
        about = json.loads((run / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SharingError(f"{run} is not the folder of a finished run: {first_line(error)}") from error
    files = [file for file in (run / "model").glob("*") if file.is_file() and not file.is_symlink()]
    if not files:
        raise SharingError(f"{run} has no model to share")
    with open_run(run, location=store) as experience:
        insights = [insight.text for insight in experience.active_insights()]
    (staged / "model").mkdir()
    for file in files:
        (staged / "model" / file.name).symlink_to(file.resolve())
    (staged / "model" / "README.md").unlink(missing_ok=True)
    card = model_card(name, saved_config(run), results, about, insights)
    (staged / "model" / "README.md").write_text(card, encoding="utf-8")
    location = store or about["config"].get("store") or run / "experience.db"
    with redirect_stdout(StringIO()):  # it tells what it has written
        export_run(str(location), staged / EXPERIENCE, run=about.get("run_id"))
    with (staged / EXPERIENCE / "README.md").open("a", encoding="utf-8") as readme:
        readme.write(_ABOUT_EXPERIENCE.format(name=name))
    mask = masker()  # a secret may not have been known as one when it was written
    for file in (staged / EXPERIENCE).iterdir():
        with (
            appearing(file) as tmp,
            file.open(encoding="utf-8") as lines,
            tmp.open("w", encoding="utf-8") as masked_lines,
        ):
            masked_lines.writelines(map(mask, lines))


def model_card(
    name: str,
    config: SelfImproveConfig,
    results: Mapping[str, Any],
    about: Mapping[str, Any],
    insights: Sequence[str],
) -> str:
    """What the model is, in Markdown, as the hub shows it; ``about`` is what ``config.json`` holds."""
    base = EMBEDDED_HUB_ID if config.model == EMBEDDED else config.model
    is_on_hub = _HUB_ID.fullmatch(base) is not None and "/" in base and not Path(base).exists()
    head = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        **({"base_model": base} if is_on_hub else {}),
        "tags": ["opcd-gym", "context-distillation"],
    }
    arms = (results.get("arms"), results.get("sampled_arms"))
    tables = zip(map(temperature_text, results.get("eval_temperature", ())), arms, strict=False)
    card = _card().render(
        head=yaml.safe_dump(head, sort_keys=False),
        name=name,
        base=base if is_on_hub else Path(base).name,
        env=config.env,
        is_trained=results.get("best_step", 0) > 0,
        means=results.get("success_means"),
        tables=[(temperature, arms) for temperature, arms in tables if arms],
        labels=ARM_LABELS,
        rate=rate_text,
        change=results.get("comparison"),
        kl=results.get("kl"),
        insights=insights,
        most=MAX_INSIGHTS,
        experience=name + KINDS["dataset"],
        command=results.get("command") or command_of(config),
        packages=about.get("packages", {}),
        revision=about.get("git_revision"),
    )
    text: str = masked(printable(card))
    return text


@cache
def _card() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"word": _word, "fenced": _fenced}
    return environment.from_string(Path(__file__).with_name("model_card.md.j2").read_text(encoding="utf-8"))


def command_of(config: SelfImproveConfig) -> str:
    """The command that makes such a run: of files and folders the name only, and nothing of the machine."""
    kwargs = {key: _name_of(value) for key, value in config.env_kwargs.items()}
    given: dict[str, Any] = {"env": config.env, "env_kwargs": kwargs or None, "model": _name_of(config.model)}
    return command_line("self_improve", {**given, **settings_of(config, *given)})


def settings_of(config: SelfImproveConfig, *but: str) -> dict[str, Any]:
    """What is not as the env's author recommends, but for some, and for what is of the machine."""
    defaults = SelfImproveConfig.for_env(config.env)
    values = {name: value for name, value in vars(config).items() if value != getattr(defaults, name)}
    left_out = {*MACHINE, *but, "output", "resume", "insight_url"}
    return {
        name: _name_of(value)
        for name, value in values.items()
        if name not in left_out and "://" not in str(value)
    }


def command_line(module: str, given: Mapping[str, Any]) -> str:
    """A command of ours with its settings, by name, but for those that are ``None``."""
    words = ["python", "-m", f"agents.{module}"]
    for name, value in given.items():
        if value is None:
            continue
        values = value if isinstance(value, list | tuple) else [value]
        words += [flag(name), *(json.dumps(one) if isinstance(one, dict) else str(one) for one in values)]
    return shlex.join(words)


def _name_of(value: Any) -> Any:
    """Of a path its last part: where it is on this machine is nobody's business."""
    is_path = isinstance(value, Path) or (isinstance(value, str) and Path(value).is_absolute())
    return Path(value).name if is_path else value


def _word(text: str) -> str:
    """In one line, without what would be Markdown or HTML."""
    return " ".join(re.sub(r"[`<>|*\[\]]", " ", str(text)).split())


def _fenced(text: str) -> str:
    """As code, which nothing in it can end."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"
