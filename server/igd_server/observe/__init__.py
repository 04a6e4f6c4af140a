"""What operators see: metrics, traces, log lines."""
