"""A server that answers every request with the bytes in the file named on its command line; prints its port.

`endless` as a second word repeats the file's last line until the client leaves.
"""

from __future__ import annotations

import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path

GIVE_UP_S = 30.0


def main() -> None:
    """Serve until killed."""
    answer = Path(sys.argv[1]).read_bytes()
    is_endless = sys.argv[2:] == ["endless"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sys.stdout.write(f"{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        while True:
            threading.Thread(target=_answer, args=(listener.accept()[0], answer, is_endless), daemon=True).start()


def _answer(client: socket.socket, answer: bytes, is_endless: bool) -> None:
    client.settimeout(GIVE_UP_S)
    with client, suppress(OSError):
        client.recv(65_536)
        client.sendall(answer)
        while is_endless:
            client.sendall(answer.splitlines(keepends=True)[-1] * 100)


if __name__ == "__main__":
    main()
