"""The published weights, fetched from the released project: python -m system.weights [ADDRESS].

`make weights` runs it. It needs Python alone, so that it works before anything is installed.
"""

import hashlib
import http.client
import sys
import urllib.request
from functools import partial
from pathlib import Path

from settings import UserError
from system.files import read_bytes, require_writable, write_atomically
from system.program import report_errors, run_program

URL = "https://github.com/stevewongv/SPANet/raw/master/model/latest"
SIZE = 3_450_077
DIGEST = "3b5d58d0f4569004a0d2dc6f4373463bd60991fc8a04c061361357cf012e5eb0"
TARGET = Path("model") / "published"
TIMEOUT_SECONDS = 30.0  # that the server may be silent


def fetch(url: str, path: Path, size: int = SIZE, digest: str = DIGEST) -> None:
    """Put the file of that size and SHA-256 at path, from url, unless it is there already.

    Args:
        size: in bytes.
        digest: SHA-256 in lower-case hexadecimal digits.

    Raises:
        UserError: another file is at path, url does not give what was expected, or path cannot be
            written. What was at path is as it was, and nothing else is left.
        OSError: what is at path cannot be read.
    """
    expected = f"expected {size} bytes with SHA-256 {digest}"
    if path.exists():
        if hashlib.sha256(read_bytes(path)).hexdigest() != digest:
            raise UserError(f"{path}: another file is there; {expected}; move it away")
        print(f"{path} is there already, with the expected SHA-256: nothing to download")
        return
    require_writable(path.parent)
    print(f"Downloading {url} to {path}", flush=True)
    # It is small enough to be kept in memory: an interrupted download leaves no file.
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            data = response.read(size + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        cure = f"without a network, copy that file to {path}, or `make weights WEIGHTS_URL=...`"
        raise UserError(f"{url}: {str(error).strip('<>')}; {expected}; {cure}") from None
    if hashlib.sha256(data).hexdigest() != digest:
        count = f"{size} bytes or more" if len(data) > size else f"{len(data)} bytes"
        raise UserError(f"{url}: gives another file, of {count}; {expected}")
    write_atomically(path, data)
    print(f"{path}: {size} bytes with the expected SHA-256")


def main() -> int:
    """Fetch the published weights. Returns the exit status, see report_errors."""
    url = sys.argv[1] if len(sys.argv) > 1 else URL
    return report_errors("weights", partial(fetch, url, TARGET))


if __name__ == "__main__":
    sys.exit(run_program(main))
