message("SKIPPED: no Node 20 or newer found; scripts/setup.sh installs one, or set MIXED_KV_NODE")
