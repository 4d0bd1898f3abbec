"""As process 1 of a container: an init in front of the dispatcher, which goes on as its child.

Whoever is orphaned becomes a child of process 1, and stays a zombie until that waits for it. The dispatcher starts helpers (the
SDK's credential processes), and must not wait for children that it does not know: the exit status of a helper would be lost
to whoever started it. So the two are two processes, parted before anything else is loaded. The init passes signals on, waits
for whatever ends, and ends with the dispatcher's own status.
"""

import os
import signal

PASSED_ON = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def go_on_behind_an_init() -> None:
    """Returns in the process that is to go on: a child of process 1, or this one where it is another."""
    if os.getpid() != 1:
        return
    # Blocked, a signal waits until it is asked for; the kernel drops what process 1 neither handles nor blocks.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*PASSED_ON, signal.SIGCHLD})
    child = os.fork()
    if child:
        os._exit(_init(child))
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _init(child: int) -> int:
    """Lives as long as the child; returns its exit status, 128 more than the signal that ended it."""
    while True:
        came = signal.sigwaitinfo({*PASSED_ON, signal.SIGCHLD})
        if came.si_signo == signal.SIGCHLD:
            status = _reap(child)
            if status is not None:
                return status if status >= 0 else 128 - status
        elif came.si_code <= 0:
            # A process sent it; a terminal's Ctrl-C comes from the kernel, and to the child as well.
            os.kill(child, came.si_signo)


def _reap(child: int) -> int | None:
    """Waits for all that have ended; the child's exit status if it is one of them."""
    found = None
    while True:
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if not ended:
            return found
        if ended == child:
            found = os.waitstatus_to_exitcode(status)
