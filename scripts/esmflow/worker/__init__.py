"""The worker of a job: a pool of processes, through which its shards go into the store."""
