"""What all rooms stand on: errors, files, tables, locks, manifests and paths."""
