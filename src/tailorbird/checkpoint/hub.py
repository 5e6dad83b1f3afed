"""Models by name: a folder here, or one that the hub has."""

from functools import partial
from pathlib import Path

from tailorbird.errors import CheckpointError

WEIGHTS = ("*.safetensors",)  # never pickles, never ONNX
WORDS = ("*.json", "*.jinja")  # tokenizer.json among them
BELOW = "*/*"  # variants of the model for other programs


def find_model(
    path_or_id: str | Path, revision: str | None = None, *, weights: bool = True, inner: tuple[str, ...] = ()
) -> Path:
    """A folder as it is; user/name that is no folder is fetched from the hub, and cached.

    Without the hub, what was fetched before is used. `revision` is a branch, a tag or a commit.
    Without `weights` they are not fetched, only what describes the model; `inner` names files in folders of
    it that are fetched too, if it has them.

    Raises:
        CheckpointError: there is no such folder, and no such model that the hub gives; or a revision is asked
            of a folder.
    """
    path = Path(path_or_id)
    if path.is_dir():
        if revision is not None:
            raise CheckpointError(
                f"{path} is a folder here, and a folder has no revisions: leave out {revision!r}"
            )
        return path
    if path.exists():
        raise CheckpointError(f"{path} is a file: name the folder that it lies in, or a .gguf file")
    if len(path.parts) != 2 or path.is_absolute() or path.parts[0] in (".", ".."):
        raise CheckpointError(
            f"{path_or_id} is no folder here, and no hub id of the form user/name: check the spelling"
        )
    from huggingface_hub import snapshot_download

    try:
        wanted = [*WORDS, *WEIGHTS] if weights else [*WORDS]
        fetch = partial(snapshot_download, str(path_or_id), revision=revision)
        if inner:
            fetch(allow_patterns=list(inner))
        return Path(fetch(allow_patterns=wanted, ignore_patterns=[BELOW]))
    except Exception as error:  # the library, and what it stands on, raise whatever they like
        asked = f"{path_or_id} at revision {revision}" if revision else str(path_or_id)
        raise CheckpointError(
            f"{asked} is no folder here, and the hub did not give it: {_remedy(error)}"
        ) from error


def _remedy(error: Exception) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    match error:
        case GatedRepoError():
            return "its owner gives access on request. Ask on its page, then run `hf auth login`"
        case RepositoryNotFoundError():
            return "it knows no such model. Check the spelling; if it is private, run `hf auth login`"
        case RevisionNotFoundError():
            return "it has no such revision. Name a branch, a tag or a whole commit of it"
        case HFValidationError():
            return "no id looks like that. Check the spelling"
        case LocalEntryNotFoundError():
            return (
                "it cannot be reached, and no earlier copy is complete. "
                "Check the network and HF_HUB_OFFLINE, then try again"
            )
        case _:
            reason = str(error).strip().splitlines() or ["no reason given"]
            return f"{type(error).__name__}: {reason[0]}. Check the network, then try again"
