"""Folders of this machine and repositories of the Hugging Face hub under one kind of name."""

import functools
import logging
import os
import re
from pathlib import Path

from cinema_jax.errors import InputError

logger = logging.getLogger(__name__)

# All that this project reads; no pickle, which can run any code.
PATTERNS = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
SCHEME = "hf://"
# The hub's rules of names: at most 96 characters, words with "." and "-" inside, neither doubled; git's of revisions.
_ID = re.compile(
    r"(?![^@]*--)(?!.*\.\.)(?![^@]{97})"
    r"(?P<repository>\b(?P<owner>[\w.-]+)\b/\b[\w.-]+\b(?<!\.git))(@(?P<revision>\w[\w./-]*))?",
    re.ASCII,
)
_REPOSITORY = f"a repository of the Hugging Face hub as {SCHEME}owner/name or {SCHEME}owner/name@revision"
# Seconds after which the hub counts as out of reach.
_PATIENCE = 10


def folder(where: str) -> Path:
    """A folder of this machine, or a repository of the Hugging Face hub as a folder.

    Args:
        where: a path; or `hf://owner/name`, or `hf://owner/name@revision`, whose files are fetched into the cache of
            huggingface_hub unless they are there. Nothing else ever leads to the hub: whoever owns a name there that is
            like a mistyped path would decide what runs.

    Raises:
        InputError: it is neither, or the hub does not give it.
    """
    if not where.startswith(SCHEME):
        if where and "\0" not in where and os.path.exists(where):
            return Path(where)
        hint = f"; for the repository of that name say {SCHEME}{where}" if _ID.fullmatch(where) else ""
        raise InputError(f"{_shown(where)} does not exist; accepted is a folder, or {_REPOSITORY}{hint}")
    named = _ID.fullmatch(where.removeprefix(SCHEME))
    if named is None:
        raise InputError(f"{_shown(where)} does not exist; accepted is a folder, or {_REPOSITORY}")
    return _fetched(named["repository"], named["revision"])


def _shown(where: str) -> str:
    return repr(where if len(where) <= 200 else f"{where[:197]}...")


@functools.lru_cache
def _fetched(repository: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    name = f"{SCHEME}{repository}" + (f"@{revision}" if revision else "")
    snapshot = functools.partial(snapshot_download, repository, revision=revision, allow_patterns=list(PATTERNS))
    try:
        # Asked first, because a download falls back to its cache without a word.
        HfApi().model_info(repository, revision=revision, timeout=_PATIENCE)
        logger.info("fetching %s", name)
        path = Path(snapshot())
    # The errors of the hub, of HTTP, of xet and of the disk share no other base.
    except Exception as error:
        try:
            path = Path(snapshot(local_files_only=True))
        except (OSError, ValueError):
            raise InputError(f"{name}: {_reason(error, repository)}") from error
        logger.info("%s: the hub did not give it (%s), the copy in the cache is used", name, type(error).__name__)
    if not any(any(path.rglob(pattern)) for pattern in PATTERNS):
        raise InputError(
            f"{name} has none of {', '.join(PATTERNS)}; pickles can run any code and are never fetched: take a "
            "repository that has the model's safetensors version"
        )
    logger.info("%s is in %s", name, path)
    return path


def _reason(error: Exception, repository: str) -> str:
    from huggingface_hub import constants, errors

    known = {
        errors.OfflineModeIsEnabled: "HF_HUB_OFFLINE is set and keeps from asking the hub: unset it, or give a folder",
        errors.GatedRepoError: f"its owner grants access: ask for it at {constants.ENDPOINT}/{repository}, then log in "
        "with `hf auth login`",
        errors.RepositoryNotFoundError: "the hub has no such repository, or a private one: check the name, or log in "
        "with `hf auth login`",
        errors.RevisionNotFoundError: "the repository has no such revision: name a branch, a tag or a commit of it",
    }
    for kind, reason in known.items():
        if isinstance(error, kind):
            return reason
    # Where a download stops, the cause says why.
    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error
    said = (str(cause).strip() or "no message").splitlines()[0].rstrip(".")
    return (
        f"its download was not complete ({type(cause).__name__}: {said}): check connection, disk and access token, and "
        "try again, or give a folder; complete files are kept"
    )
