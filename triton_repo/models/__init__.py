"""What runs inside Triton's Python backend; copied into each repository, so it leans on little.

Only the standard library, numpy and `tokenizers` may be imported here, and `engines` by the emulated engine alone.
Triton's own module is passed in as `backend`: these files can be read, typed and tested without a server.
"""
