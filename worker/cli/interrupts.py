"""
Signals that end a command as Ctrl-C does.

It is imported before anything else, so it imports nothing but `signal`: a process that is the
first of its container is kept by the kernel from every signal that it has no handler for
(pid_namespaces(7)), and would be killed at the end of its time of grace instead.
"""

import signal

INTERRUPTED = 130
"""The exit code after Ctrl-C, and what is like it."""


def end_as_by_an_interrupt(*signals: signal.Signals) -> None:
    """Let these signals end the command as Ctrl-C does, but for one that is ignored."""
    for one in signals:
        if signal.getsignal(one) is not signal.SIG_IGN:
            signal.signal(one, _interrupt)


def _interrupt(*_: object) -> None:
    # A shell starts what it sends to its background with an interrupt that is ignored.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)
