"""The hub's own library: imported when something is pushed or pulled, its failures told in one line with the remedy."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kernels.errors import UserError
from mm.files import is_of_the_disk

if TYPE_CHECKING:
    from huggingface_hub import HfApi

LOGIN = "run `hf auth login`, or set HF_TOKEN"


def hub() -> "HfApi":
    """The client, of the endpoint in HF_ENDPOINT and with the user's token."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    return HfApi(library_name="mm-align")


@contextmanager
def told(what: str) -> Iterator[None]:
    """Raise a hub's failures as UserError.

    Args:
        what: is done to which repository, such as `pull org/name`.
    """
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        yield
    except UserError:
        raise
    except (HTTPError, HFValidationError, OSError) as error:
        if isinstance(error, OSError) and is_of_the_disk(error):
            raise
        raise UserError(f"{what}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """What went wrong, and what to do."""
    from huggingface_hub import constants, errors

    kinds: list[tuple[type[Exception], str]] = [
        (errors.GatedRepoError, f"its owner lets in who accepts its terms: do so on its page, then {LOGIN}"),
        (errors.RepositoryNotFoundError, f"there is none of that name, or it is private: check the name, or {LOGIN}"),
        (errors.RevisionNotFoundError, "it has no such revision: name a branch, a tag or a commit of it"),
        (errors.LocalTokenNotFoundError, f"no token: {LOGIN}"),
        (errors.OfflineModeIsEnabled, "HF_HUB_OFFLINE is set: unset it"),
        (errors.LocalEntryNotFoundError, "not all of it is in the cache, and there is no connection: pull it again"),
        (errors.HFValidationError, "the hub takes no such name: write org/name"),
    ]
    for kind, words in kinds:
        if isinstance(error, kind):
            return words
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the hub refuses it ({status}): {LOGIN}, with a token that may write there"
    if status == 409:
        return f"the hub has something of that name already (409): {_line(error)}"
    if status is not None:
        return f"the hub answers {status}: {_line(error)}; try again later"
    return f"no connection to {constants.ENDPOINT} ({_line(error)}): check the network and HF_ENDPOINT"


def is_out_of_reach(error: Any) -> bool:
    """Whether no answer came at all: a cached copy may stand in."""
    from huggingface_hub.errors import HfHubHTTPError

    return not isinstance(error, HfHubHTTPError)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
