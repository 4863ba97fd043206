"""Traffic, records, metrics, charts: how an engine behind a server behaves under load."""
