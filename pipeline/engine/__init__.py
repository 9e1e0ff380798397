"""Plan, workers, driver and ledger: how units of rows become committed shards. Ray lives in worker.py and driver.py."""
