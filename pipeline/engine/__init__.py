"""The engine: a plan's units of rows become committed shards. Only cluster, local_ray and ray_workers use Ray."""
