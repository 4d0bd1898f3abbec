"""Tells systemd how the service is, where it asks to be told (`Type=notify`); anywhere else nothing happens."""

import os
import socket


def notify(state: str) -> None:
    """Sends one state, such as `READY=1` or `STOPPING=1`; whoever does not listen is not waited for."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    # A leading @ stands for the abstract namespace.
    name = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.connect(name)
            channel.send(state.encode())
        except OSError:
            return
