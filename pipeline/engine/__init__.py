"""The engine: it labels a plan's units (ranges of rows) and commits one shard per unit.

Only the modules cluster, local_ray and ray_workers use Ray.
"""
