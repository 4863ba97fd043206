"""Load tests of served engines: traffic, records, metrics, charts, predictions, capacity plans."""
