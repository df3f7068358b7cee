"""What `facetry audit` finds in real sets: `python -m benchmarks.audits`, minutes; renews docs/audit.md."""
