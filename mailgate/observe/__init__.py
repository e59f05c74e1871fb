"""What watches sessions: metrics, log, traces."""
