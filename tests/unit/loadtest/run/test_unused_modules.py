"""What a load generator imports of Locust."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from loadtest.run.unused_modules import UNUSED, leave_out_unused
import os
os.environ["LOCUST_SKIP_MONKEY_PATCH"] = "1"
leave_out_unused()
import locust, locust.runners
from locust.env import Environment
import requests.adapters, requests.exceptions
assert issubclass(requests.exceptions.RequestException, Exception)
assert not hasattr(requests, "__file__")
loaded = {name for name in sys.modules if name.split(".")[0] in {"certifi", "charset_normalizer", "http.cookiejar"}}
assert not loaded, loaded
assert locust.User.__module__ == "locust.user.users"
Environment(user_classes=[])
"""


def test_locust_is_imported_without_its_http_libraries() -> None:
    """Its users, runners and environment work with stand-ins for `requests` and its like, whatever name is imported."""
    subprocess.run([sys.executable, "-c", CODE], check=True)


def test_a_run_imports_no_models_of_engines() -> None:
    """Neither the command nor the process that reads the tokenizer and the chats."""
    code = (
        "import sys, loadtest.cli.actions.run_load\n"
        "from engines.checkpoint import documents_of, load_tokenizer\n"
        "assert not {'engines.spec', 'engines.manifest'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
