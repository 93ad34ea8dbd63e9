"""Whether the hosts that publish weights answer. It loads no torch."""

from http.client import HTTPException
from threading import Thread
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from models.catalog import Architecture

TORCHVISION = "https://download.pytorch.org/models/"
_TIMEOUT_S = 3.0


def silent(url: str, timeout_s: float = _TIMEOUT_S) -> str:
    """Why nothing answers at `url` in time; empty if a server does, whatever it says."""
    reasons: list[str] = []

    def ask() -> None:
        try:
            urlopen(Request(url, method="HEAD"), timeout=timeout_s).close()
            reasons.append("")
        except HTTPError as error:
            error.close()
            reasons.append("")
        except (OSError, ValueError, HTTPException) as error:
            reasons.append(str(getattr(error, "reason", error)))

    thread = Thread(target=ask, daemon=True)  # a name may be looked up for longer
    thread.start()
    thread.join(timeout_s)
    return reasons[0] if reasons else f"no answer within {timeout_s:g} s"


def unreachable(architecture: Architecture, mirror: str | None) -> str:
    """Why no host of the default weights answers; empty if one does, or none is needed."""
    weights = architecture.default_weights
    if weights is None or weights.file is not None:
        return ""
    urls = (mirror,) if mirror else weights.urls or (TORCHVISION,)
    reasons = [f"{url} cannot be reached: {reason}" if (reason := silent(url)) else "" for url in urls]
    return "; ".join(reasons) if all(reasons) else ""
