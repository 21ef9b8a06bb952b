"""Publish a model folder on the Hugging Face Hub."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from ssppo_jax.errors import ConfigError, UserError

log = logging.getLogger(__name__)

MARKS = ("config.json", "adapter_config.json")  # one of them stands in what can be published
SECTION = re.compile(r"^license: other$", re.MULTILINE)


def push(folder: Path, repo: str, *, private: bool = True) -> str:
    """Upload a model's or an adapter's folder in one commit; return the repository's address.

    Args:
      folder: a run's policy/ or adapters/, or another folder of this kind.
      repo: owner/name; made if it is not there.
      private: of a repository that is made.

    Raises:
      ConfigError: no such folder, no model in it, a bad name, or no token.
      UserError: the Hub refuses, or cannot be reached.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ConfigError(f"--repo={repo}: write it as owner/name")
    run = (folder / "metrics.jsonl").is_file()  # its config.json is no model's
    if run or not any((folder / mark).is_file() for mark in MARKS):
        near = folder / "policy"
        hint = f"; give {near}" if near.is_dir() else "; give a run's policy or adapters folder"
        raise ConfigError(f"--folder={folder} holds no model{hint}")
    card = folder / "README.md"
    if not card.is_file():
        log.warning("%s has no README.md; the Hub will show no licence and no description", folder)
    elif SECTION.search(card.read_text(encoding="utf-8")):
        log.warning("%s states no licence; look up that of the base model", card)
    from httpx2 import HTTPError
    from huggingface_hub import HfApi  # a second to import
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    api = HfApi(library_name="ssppo_jax")
    try:
        made = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message="Upload from ssppo_jax",
            ignore_patterns=[".*", "*.tmp"],
        )  # fmt: skip
    except LocalTokenNotFoundError:
        raise ConfigError(
            "no token of the Hugging Face Hub; run hf auth login, or set HF_TOKEN"
        ) from None
    except HFValidationError as error:
        raise ConfigError(f"--repo={repo}: {error}") from None
    except HfHubHTTPError as error:
        raise UserError(f"--repo={repo}: {_reason(error)}") from None
    except (OSError, HTTPError) as error:  # no network, or offline by HF_HUB_OFFLINE
        raise UserError(f"the Hugging Face Hub cannot be reached: {error}") from None
    return str(made)


def _reason(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "the token is missing or wrong; run hf auth login, or set HF_TOKEN"
    if status == 403:
        return "the token may not write there; make one with the permission to write"
    return str(error).strip()
