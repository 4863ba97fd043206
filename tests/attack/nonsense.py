"""A server that answers every request with the bytes in the file named on its command line; prints its port.

`endless` as a second word repeats the file's last line until the client leaves; `slow` sends its bytes half a second
apart, over and over.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

GIVE_UP_S = 30.0
SLOW_S = 0.5


def main() -> None:
    """Serve until killed."""
    answer = Path(sys.argv[1]).read_bytes()
    manner = sys.argv[2]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sys.stdout.write(f"{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        while True:
            threading.Thread(target=_answer, args=(listener.accept()[0], answer, manner), daemon=True).start()


def _answer(client: socket.socket, answer: bytes, manner: str) -> None:
    client.settimeout(GIVE_UP_S)
    with client, suppress(OSError):
        client.recv(65_536)
        while manner == "slow":
            for byte in answer:
                client.sendall(bytes([byte]))
                time.sleep(SLOW_S)
        client.sendall(answer)
        while manner == "endless":
            client.sendall(answer.splitlines(keepends=True)[-1] * 100)


if __name__ == "__main__":
    main()
