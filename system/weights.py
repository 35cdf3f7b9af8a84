"""The published weights, fetched from the released project: python -m system.weights [ADDRESS].

`make weights` runs it. It needs Python alone, so that it works before anything is installed.
"""

import hashlib
import http.client
import sys
import urllib.error
import urllib.request
from pathlib import Path

from settings import UserError
from system.files import require_writable, write_atomically
from system.reading import read_bytes

URL = "https://github.com/stevewongv/SPANet/raw/master/model/latest"
SIZE = 3_450_077
DIGEST = "3b5d58d0f4569004a0d2dc6f4373463bd60991fc8a04c061361357cf012e5eb0"
TARGET = Path("model") / "published"
TIMEOUT = 30.0
CHUNK = 1 << 16


def fetch(
    url: str, path: Path, size: int = SIZE, digest: str = DIGEST, timeout: float = TIMEOUT
) -> None:
    """Put the file of that size and SHA-256 at path, from url, unless it is there already.

    Args:
        size: in bytes.
        digest: SHA-256 in lower-case hexadecimal digits.
        timeout: seconds that the server may be silent.

    Raises:
        UserError: another file is at path, url does not give what was expected, or path cannot be
            written. What was at path is as it was, and nothing else is left.
    """
    expected = f"expected {size} bytes with SHA-256 {digest}"
    if _is_there(path, size, digest):
        print(f"{path} is there already, with the expected SHA-256: nothing to download")
        return
    if not url.isprintable():
        raise UserError(f"{url!r}: not an address; {expected}")
    require_writable(path.parent)
    print(f"Downloading {url} to {path}", flush=True)
    # Kept in memory, as it is small: whatever ends the process meanwhile, no file is left behind.
    try:
        data = _download(url, size, timeout)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(
            f"{url}: {_reason(error)}; {expected}; without a network, copy that file to {path}, or "
            "`make weights WEIGHTS_URL=...`"
        ) from None
    if len(data) > size:
        raise UserError(f"{url}: sends too much: stopped after {size} bytes; {expected}")
    if len(data) < size:
        raise UserError(f"{url}: ended after {len(data)} bytes; {expected}")
    found = _sha256(data)
    if found != digest:
        raise UserError(f"{url}: another file, with SHA-256 {found}; {expected}")
    write_atomically(path, bytes(data))
    print(f"{path}: {size} bytes with the expected SHA-256")


def _is_there(path: Path, size: int, digest: str) -> bool:
    """Whether path is the expected file. Raises UserError where something else is in its place."""
    try:
        if path.stat().st_size == size and _sha256(read_bytes(path)) == digest:
            return True
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    raise UserError(
        f"{path}: another file is there already, and was left as it is; expected {size} bytes with "
        f"SHA-256 {digest}, or no file; move it away to download the published weights"
    )


def _sha256(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


def _download(url: str, size: int, timeout: float) -> bytearray:
    """What url gives, but not more than one byte over size. Raises what urllib raises."""
    data = bytearray()
    bar = sys.stdout.isatty()
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            while part := answer.read(min(CHUNK, size + 1 - len(data))):
                data += part
                if bar:
                    done = min(len(data), size)
                    print(f"\r{done / 1e6:.1f} of {size / 1e6:.1f} MB", end="", flush=True)
    finally:
        if bar and data:
            print()
    return data


def _reason(error: Exception) -> str:
    """Why urllib failed, in one line."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    text = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return " ".join(str(text).split())


def main(argv: list[str]) -> int:
    """Fetch the published weights. Returns the exit status."""
    try:
        fetch(argv[0] if argv else URL, TARGET)
    except UserError as error:
        print(f"weights: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
