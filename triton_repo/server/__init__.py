"""Starting, stopping and controlling Triton. May import `settings` and `interface`."""

from triton_repo.server.launch import (
    DRAINED_GRACE_S,
    SERVER_NAME,
    TERM_GRACE_S,
    Ports,
    ServerRecord,
    drain_server,
    running_server,
    server_flags,
    start_server,
    stop_server,
    watch_server,
)
from triton_repo.server.mpi_ranks import across_ranks, rank_environment
from triton_repo.server.openai_process import (
    FrontOptions,
    FrontRecord,
    require_free,
    require_front,
    start_front,
    stop_front,
)
from triton_repo.server.preflight import require_servable
from triton_repo.server.trtllm_serve import become_trtllm_serve, serve_command_of

__all__ = [
    "DRAINED_GRACE_S",
    "SERVER_NAME",
    "TERM_GRACE_S",
    "FrontOptions",
    "FrontRecord",
    "Ports",
    "ServerRecord",
    "across_ranks",
    "become_trtllm_serve",
    "drain_server",
    "rank_environment",
    "require_free",
    "require_front",
    "require_servable",
    "running_server",
    "serve_command_of",
    "server_flags",
    "start_front",
    "start_server",
    "stop_front",
    "stop_server",
    "watch_server",
]
