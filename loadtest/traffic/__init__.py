"""Requests and their times: open and closed loops, conversations, prompts. May import `results` and `scenario`."""

from loadtest.traffic.closed_loop import ClosedLoop, closed_loop
from loadtest.traffic.conversations import (
    SAMPLED_CONVERSATIONS,
    ConversationSampler,
    ConversationState,
    LengthStats,
    Rows,
    always,
    length_stats_of,
)
from loadtest.traffic.levels import LevelPlan, Turn, plans_of, turn_of
from loadtest.traffic.lookahead import Lookahead
from loadtest.traffic.open_loop import OpenLoop, open_loop
from loadtest.traffic.prepare import count_rows, prepare
from loadtest.traffic.prompts import GOLDEN, PREPARED_SUFFIXES, Prompt, PromptMaker
from loadtest.traffic.ready_chats import copy_ready_chats

__all__ = [
    "GOLDEN",
    "PREPARED_SUFFIXES",
    "SAMPLED_CONVERSATIONS",
    "ClosedLoop",
    "ConversationSampler",
    "ConversationState",
    "LengthStats",
    "LevelPlan",
    "Lookahead",
    "OpenLoop",
    "Prompt",
    "PromptMaker",
    "Rows",
    "Turn",
    "always",
    "closed_loop",
    "copy_ready_chats",
    "count_rows",
    "length_stats_of",
    "open_loop",
    "plans_of",
    "prepare",
    "turn_of",
]
