"""An in-flight batcher without a GPU: scheduler, paged KV blocks, iteration loop; time is passed in."""
