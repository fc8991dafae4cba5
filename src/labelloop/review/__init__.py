"""What people decide about labels, and what they are asked: decisions are files that a run reads and never writes."""
