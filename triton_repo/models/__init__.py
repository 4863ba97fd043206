"""The code that runs in Triton's Python backend. It is copied into each repository, so it has few dependencies.

Only the standard library, numpy and `tokenizers` may be imported here; the emulated engine may also import `engines`.
Triton's own module is passed in as `backend`, so that these files can be type-checked and tested without a server.
"""
