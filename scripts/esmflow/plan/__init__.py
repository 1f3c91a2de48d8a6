"""The plan: what is missing from the store, in shards that are dealt to worker jobs."""
