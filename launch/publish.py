r"""Uploads an export to a model repository of the Hugging Face Hub.

python -m launch.export --checkpoint=runs/first --format=huggingface --license=cc-by-4.0 \
    --output=exports
python -m launch.publish --folder=exports/huggingface --repo=NAME/MODEL

The repository is created if it is missing, private unless --public is given. The access token is
that of `hf auth login` or of the environment's HF_TOKEN. Needs the extra 'hub'.

Exit codes: 0 done; 1 the hub can't be reached or refuses; 2 something is wrong with flags or files.
"""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from groupvit_jax.interop.hub_files import CARD
from groupvit_jax.runs import exit_codes
from groupvit_jax.runs.files import read_json
from launch import common

_EXPECTED = ("config.json", "model.safetensors", CARD)


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line, `argv[0]` being the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--folder", required=True, help="what launch.export --format=huggingface wrote")
    add("--repo", required=True, help="NAME/MODEL on the hub")
    add("--public", action="store_true", help="make a new repository public")
    add("--message", default="Upload a GroupViT", help="of the commit")
    return parser.parse_args(argv[1:])


def main(flags: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    try:
        folder = check_folder(Path(flags.folder))
        check_repo(flags.repo)
        if importlib.util.find_spec("huggingface_hub") is None:
            raise ValueError("the package huggingface_hub is missing, install the extra 'hub'")
    except (ValueError, FileNotFoundError) as error:
        common.fail(exit_codes.BAD_INPUT, error)
    return upload(folder, flags.repo, public=flags.public, message=flags.message)


def check_folder(folder: Path) -> Path:
    """Return the folder if it is a complete export.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: it is an export of another format.
    """
    for name in _EXPECTED:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"--folder={folder}: no {name} found, expected a folder that launch.export "
                "--format=huggingface wrote"
            )
    kind = read_json(folder / "config.json").get("model_type")
    if kind != "groupvit":
        raise ValueError(f"{folder / 'config.json'}: model_type {kind!r}, expected 'groupvit'")
    return folder


def check_repo(repo: str) -> None:
    """Raise ValueError unless the name of a repository has two parts."""
    owner, _, name = repo.partition("/")
    if not owner or not name or "/" in name:
        raise ValueError(f"--repo={repo}: expected NAME/MODEL, e.g. ada/groupvit-yfcc")


def upload(folder: Path, repo: str, *, public: bool, message: str) -> int:
    """Upload the files in one commit, large ones first; return the command's exit code."""
    # Imported here: it takes a second, and flags are checked without it.
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HFValidationError,
        HTTPError,  # of its HTTP library: httpx, since 2.0 httpx2
        LocalTokenNotFoundError,
    )

    hub = HfApi()  # finds the token by itself, so that no line of this command ever holds it
    try:
        hub.create_repo(repo, private=not public, exist_ok=True)
        commit = hub.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    except (HFValidationError, LocalTokenNotFoundError) as error:
        common.fail(exit_codes.BAD_INPUT, f"--repo={repo}: {error}")
    except (HTTPError, OSError) as error:
        common.fail(exit_codes.FAILED, f"--repo={repo}: {error}")
    print(f"uploaded {folder} to {commit.repo_url}")
    return 0


if __name__ == "__main__":
    sys.exit(main(parse_flags(sys.argv)))
