"""A slow, distant link for a virtual host, in user space: kernels without netem have no delay.

The host's cable becomes two TAP devices, and this process carries every frame from one to the other
after the time it takes on the wire. The devices carry 64 KiB
frames, so that Python keeps up with about 1 Gbit/s.
"""

import ctypes
import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque

_SET_DEVICE, _SET_OFFLOAD = 0x400454CA, 0x400454D0  # TUNSETIFF, TUNSETOFFLOAD
_TAP_WITH_HEADERS = 0x0002 | 0x1000 | 0x4000  # IFF_TAP, IFF_NO_PI, IFF_VNET_HDR
_OFFLOADS = 0x01 | 0x02 | 0x04  # checksums, TSO4, TSO6
_QUEUE_SECONDS = 0.1  # what does not leave in time is dropped, as in a switch


def tap(space: str, name: str) -> int:
    """A TAP device in a network namespace; this process moves there."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{space}") as handle:
        if libc.setns(handle.fileno(), 0x40000000):  # CLONE_NEWNET
            raise OSError(ctypes.get_errno(), f"setns {space}")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _SET_DEVICE, struct.pack("16sH22x", name.encode(), _TAP_WITH_HEADERS))
    fcntl.ioctl(device, _SET_OFFLOAD, _OFFLOADS)
    return device


def carry(one: int, other: int, delay_seconds: float, bytes_a_second: float) -> None:
    """Move frames both ways for ever."""
    queues: dict[int, deque[tuple[float, bytes]]] = {one: deque(), other: deque()}
    free, opposite = {one: 0.0, other: 0.0}, {one: other, other: one}
    while True:
        waits = []
        for device, queue in queues.items():
            while queue and queue[0][0] <= time.monotonic():
                try:
                    os.write(device, queue.popleft()[1])
                except OSError:  # the receiver's queue is full: the frame is lost, as on a wire
                    continue
            if queue:
                waits.append(queue[0][0])
        timeout = max(0.0, min(waits) - time.monotonic()) if waits else None
        for device in select.select([one, other], [], [], timeout)[0]:
            target = opposite[device]
            for _ in range(32):
                try:
                    frame = os.read(device, 70_000)
                except BlockingIOError:
                    break
                now = time.monotonic()
                sent = max(now, free[target]) + len(frame) / bytes_a_second
                if sent - now <= _QUEUE_SECONDS:
                    free[target] = sent
                    queues[target].append((sent + delay_seconds, frame))


def main(arguments: list[str]) -> None:
    """slow_link.py SWITCH PORT HOST_SPACE ADDRESS/24 MILLISECONDS MBIT; until it is ended."""
    switch, port, space, address, milliseconds, mbit = arguments
    subprocess.run(["ip", "-n", switch, "link", "del", port], check=True)  # with its other end
    one, other = tap(switch, port), tap(space, "eth0")
    for command in (
        ["-n", switch, "link", "set", port, "txqueuelen", "1000", "master", "br0", "up"],
        ["-n", space, "link", "set", "eth0", "txqueuelen", "1000", "up"],
        ["-n", space, "addr", "add", address, "dev", "eth0"],
    ):
        subprocess.run(["ip", *command], check=True)
    print("up", flush=True)
    carry(one, other, float(milliseconds) / 1e3, float(mbit) * 1e6 / 8)


if __name__ == "__main__":
    main(sys.argv[1:])
