"""Plan, workers, driver, ledger: units of rows become committed shards. Ray: cluster, ray_crew and processes alone."""
