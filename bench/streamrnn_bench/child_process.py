"""Child processes that end with their parent, however it ends.

Run as a program, this file makes itself such a child and becomes the command that follows:
``python child_process.py PARENT_PID COMMAND...``.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # without `typing`, the program starts in half the time
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence
    from typing import Any

__all__ = ["start_child"]

_PR_SET_PDEATHSIG = 1


def start_child(command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """Start a process that is killed when this one ends, even by SIGKILL (on Linux).

    The kernel watches the thread that starts it, so this raises a `RuntimeError` outside the main
    thread. ``pid`` of the result is the command's; the options are those of `subprocess.Popen`.
    """
    import subprocess
    import threading

    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("the child would end with this thread: start it in the main one")

    if sys.platform == "linux":
        # Not a preexec_fn: Python code must not run between fork and exec where there are threads.
        command = [sys.executable, "-IS", __file__, str(os.getpid()), *command]
    return subprocess.Popen(command, **options)


def _become(parent: int, command: list[str]) -> None:
    from ctypes import CDLL

    CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # outlasts the exec
    if os.getppid() != parent:  # it had ended before
        os._exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
