"""Test networks, as skeletons without weights and as small trained files; see README.md."""
