"""Signals to a thread of another process: the kernel may choose any, and mostly chooses the main one."""

import ctypes
import os
import platform
import signal

TGKILL = {"x86_64": 234, "aarch64": 131}[platform.machine()]  # glibc before 2.30 has no function for it


def signal_another_thread(process: int, number: signal.Signals) -> None:
    """Send a signal to a thread of a process that is not its main one."""
    thread = max(int(name) for name in os.listdir(f"/proc/{process}/task") if int(name) != process)
    assert ctypes.CDLL(None, use_errno=True).syscall(TGKILL, process, thread, int(number)) == 0
