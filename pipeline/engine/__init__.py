"""The engine: a plan's units of rows become committed shards. Ray is in cluster, local_ray and ray_workers alone."""
