"""Lines that the decoders' C libraries print on stderr: these are dropped, because none names an image.

libjpeg and libpng print through C's `stderr` and have no setting for it. So that variable is pointed at a pipe to a
`grep` that drops their lines and passes on all others. File descriptor 2 and `sys.stderr` stay as they are.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet_decoders", "quiet_import"]

logger = logging.getLogger(__name__)

_SHOW = "CURATOR_DALI_DECODER_LINES"  # 1: leave everything as it is
# libjpeg's texts are those of its jerror.h
_LINES = (
    r"^(libpng (error|warning): |Corrupt JPEG data: |Premature end of (JPEG|input) file|Input file read error"
    r"|Warning: unknown JFIF revision|Unknown Adobe color transform code|Inconsistent progression sequence"
    r"|Application transferred too (few|many) |Didn't expect more than one scan|Scan script does not transmit"
    r"|Bogus (DAC|DHT|DQT|Huffman|JPEG|buffer|input|marker|message|progression|sampling|virtual)"
    r"|Invalid (JPEG|component ID|crop|memory pool|progressive|SOS parameters|scan script)"
    r"|Unsupported (JPEG|color conversion|marker type)|Not a JPEG file|JPEG datastream contains no image"
    r"|(Huffman|Quantization|Arithmetic) table 0x[0-9a-f]+ was not defined|Improper call to JPEG library"
    r"|Missing Huffman code table entry|Huffman code size table overflow|Sampling factors too large"
    r"|(Fractional|CCIR601) sampling not implemented|Component index [0-9]+: |Too many color components: "
    r"|DCT (coefficient|scaled block size)|Empty (JPEG image|input file)|Maximum supported image dimension"
    r"|tempfile\.tif: |LZWDecode: |ZIPDecode: |TIFF[A-Z][A-Za-z]+: )"
)
_SETTINGS = {"PYNVIMGCODEC_VERBOSITY": "0", "OPENCV_LOG_LEVEL": "SILENT"}  # libraries that do have one
_once = threading.Lock()
_done = False


@contextmanager
def quiet_import() -> Iterator[None]:
    """Make DALI and nvImageCodec quiet that are imported inside the `with`: they read their verbosity only then."""
    settings = {} if os.environ.get(_SHOW) == "1" else _SETTINGS
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def quiet_decoders() -> None:
    """Drop the lines of libjpeg, libpng and libtiff on stderr from now on; once a process."""
    global _done
    with _once:
        if _done or os.environ.get(_SHOW) == "1":
            return
        _done = True
        try:
            _filter_stderr()
        except (OSError, ValueError, AttributeError, NotImplementedError) as error:  # no shell, another C library
            logger.debug("decoders' lines stay on stderr: %s", error)


def _filter_stderr() -> None:
    libc = ctypes.CDLL(None)
    variable = ctypes.c_void_p.in_dll(libc, "stderr")
    source, sink = os.pipe()
    try:
        # The shell leaves `grep` to init: no child of this process, which may wait for all of its own. Its session is
        # another one, so that Ctrl-C does not end it.
        shell = os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", 'command -v grep >/dev/null || exit 1; exec grep --line-buffered -avE "$0" <&3 &', _LINES],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, source, 3), (os.POSIX_SPAWN_DUP2, 2, 1)],
            setsid=True,
        )
        if os.waitpid(shell, 0)[1]:
            raise OSError("/bin/sh could not start grep")
    except BaseException:
        os.close(sink)
        raise
    finally:
        os.close(source)
    libc.fdopen.restype = ctypes.c_void_p
    stream = ctypes.c_void_p(libc.fdopen(sink, b"w"))
    libc.setvbuf(stream, None, 1, 0)  # a line at a time
    variable.value = stream.value
