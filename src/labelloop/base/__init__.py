"""What all packages stand on: errors, files, tables, locks, manifests and paths."""
